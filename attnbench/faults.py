"""What an exception of a trial means for its row, and for the process that it was raised in."""

from __future__ import annotations

import torch

from attnbench.errors import UsageError
from attnbench.records import Status
from attnbench.workload import Unsupported
from operators import checks


def failure(error: BaseException) -> tuple[Status, str]:
    """Status and reason of a trial that raised `error`."""
    text = str(error).strip().splitlines()
    reason = text[0] if text else type(error).__name__
    exhausted = any(words in str(error) for words in ("can't allocate memory", "std::bad_alloc"))
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or exhausted:
        return "out_of_memory", reason
    if isinstance(error, Unsupported):
        return "unsupported", reason
    if isinstance(error, checks.ConformanceError):
        return "nonconforming", reason
    if isinstance(error, UsageError):
        return "unsupported", reason
    return "error", f"{type(error).__name__}: {reason}"


def lost_device(error: Exception) -> bool:
    """Whether nothing runs on the device any more in this process, as after an illegal access.

    Example:
        >>> lost_device(RuntimeError("CUDA error: an illegal memory access was encountered"))
        True
    """
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
