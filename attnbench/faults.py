"""What an exception of a trial means for its row, and for the process that it was raised in."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Context in which what a network or torch raises becomes a `UsageError` of `what` that names the line."""
    try:
        yield
    except UsageError:
        raise
    except (RuntimeError, MemoryError, ValueError) as error:
        text = f"{what}: expected a network and a recipe that train, got {failure(error)[1]}{_place(error)}"
        raise UsageError(text) from error


def _place(error: BaseException) -> str:
    """The last line of a source file of the project or of the user that the error went through."""
    library = Path(torch.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and library not in path.parents:
            return f" ({path.name}, line {frame.lineno})"
    return ""


def lost_device(error: Exception) -> bool:
    """Whether nothing runs on the device any more in this process, as after an illegal access.

    Example:
        >>> lost_device(RuntimeError("CUDA error: an illegal memory access was encountered"))
        True
    """
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
