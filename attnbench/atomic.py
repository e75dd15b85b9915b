"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from attnbench.errors import UsageError


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` to `path` by way of a temporary file beside it, synced to disk before it takes the name.

    Whenever the process or the machine stops, `path` holds what it held before, or all of `data`.

    Args:
        path: the file; its folder is created if it does not exist.
        data: what it shall hold.

    Raises:
        UsageError: if the folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_atomically(folder / "file", b"whole")
        >>> [file.name for file in folder.iterdir()]
        ['file']
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(3)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def expect_writable(folder: Path) -> None:
    """Finds out before long work, not behind it, whether `folder` can be written, or created; leaves nothing.

    Raises:
        UsageError: if it cannot.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{str(path)!r}: expected a folder that can be written, got {error.strerror or error}")


def _sync_folder(folder: Path) -> None:
    """Makes the new name last; where folders cannot be opened, as on Windows, the file system sees to it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
