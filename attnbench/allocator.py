"""Memory that the C library keeps: a warm allocator on the CPU, as CUDA's caching one is."""

from __future__ import annotations

import ctypes
import functools
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_KEPT = 2**31 - 1
"""Bytes at the end of the heap from which on they are given back; glibc takes no larger number."""


@functools.cache
def keep_freed_memory() -> None:
    """Tells glibc to keep what this process frees, for the rest of its life; does nothing with another C library.

    As it is, glibc maps tensors of more than 32 MiB anew each time, and gives smaller ones back to the system or not,
    depending on what lies where; the next step pays for each of the pages anew. Which of the two it is differs from
    process to process, and from one moment to the next, and is a good part of the time of a cheap step, or of one that
    builds a large map.
    """
    if _glibc():
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        library.mallopt(_M_MMAP_MAX, 0)


def policy() -> str:
    """What a worker's allocator does with freed memory, for the fingerprint."""
    return "glibc, keeps what is freed" if _glibc() else "as the system has it"


def _glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
