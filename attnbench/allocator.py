"""Memory that the C library keeps: a warm allocator on the CPU, as CUDA's caching one is."""

from __future__ import annotations

import ctypes
import functools
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 2**30
_LARGEST = 2**25
"""Bytes; glibc takes no higher threshold, and maps what is larger anew for every tensor."""


@functools.cache
def keep_freed_memory() -> None:
    """Tells glibc to keep what this process frees, for the rest of its life; does nothing with another C library.

    As it is, glibc gives freed memory of a megabyte or so back to the system or not, depending on what lies where, and
    the next step pays for each of its pages anew. Which of the two it is differs from process to process, and from one
    moment to the next, and is a good part of the time of a cheap step.
    """
    if _glibc():
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST)


def policy() -> str:
    """What a worker's allocator does with freed memory, for the fingerprint."""
    return f"glibc, keeps up to {_KEPT // 2**20} MiB" if _glibc() else "as the system has it"


def _glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
