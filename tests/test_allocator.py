"""The allocator of a worker, asked by how many pages the system had to map anew."""

import platform
import subprocess
import sys

import pytest

from attnbench.environment import fingerprint

_FAULTS = """
import ctypes, resource, sys
from attnbench.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
def round_of_blocks():
    # the last of them lies on top of the heap, from where glibc gives all of them back
    blocks = [library.malloc(size) for size in (2**26, 2**24, 2**24, 2**24, 2**24)]
    for block in blocks:
        ctypes.memset(block, 1, 2**24)
    for block in blocks:
        library.free(block)
round_of_blocks(), round_of_blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    round_of_blocks()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc keeps its own counsel")
def test_memory_that_was_freed_is_not_mapped_again():
    assert 10 * faults("kept") < faults("as it is")


def test_the_fingerprint_says_what_the_allocator_does():
    assert fingerprint("cpu")["allocator"]
