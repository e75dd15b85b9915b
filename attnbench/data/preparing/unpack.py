"""Unpacking of zip and tar files: nothing lands outside the folder, and no file stands half written."""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from attnbench.errors import UsageError

_BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError)

Opener = Callable[[], IO[bytes]]


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    link: bool
    open: Opener


def unpack(
    archive: Path,
    into: Path,
    *,
    prefix: str = "",
    wanted: Sequence[str] = (),
    progress: Callable[[], None] | None = None,
) -> int:
    """Unpacks the files of an archive; those that are there with their full size are left alone.

    Args:
        archive: zip or tar file, the latter compressed or not.
        into: folder to unpack to.
        prefix: folders inside the archive that are left away from names; files outside of them are not unpacked.
        wanted: beginnings of the names, after the prefix, of files to unpack; none unpacks all.
        progress: called after each file.

    Returns:
        Number of files of the archive that are now there.

    Raises:
        UsageError: if the archive is broken or cut short, a name points outside the folder, or an entry is a link.
    """
    number = 0
    try:
        with _members(archive) as members:
            for member in members:
                if not member.name.startswith(prefix):
                    continue
                name = member.name[len(prefix) :]
                if wanted and not name.startswith(tuple(wanted)):
                    continue
                _write(member, _inside(into, name, archive), archive)
                number += 1
                if progress is not None:
                    progress()
    except _BROKEN as error:
        raise UsageError(
            f"archive {str(archive)!r}: expected a whole zip or tar file, got {' '.join(str(error).split())}; "
            "delete it to download it anew"
        ) from error
    if not number:
        raise UsageError(f"archive {str(archive)!r}: expected files under {prefix!r}, got none")
    return number


def _inside(into: Path, name: str, archive: Path) -> Path:
    """The file that an entry becomes."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name or not pure.parts:
        raise UsageError(f"archive {str(archive)!r}: expected names inside its folder, got {name!r}")
    path = into.joinpath(*pure.parts)
    # a link that lies in the folder already must not lead a file out of it
    if not path.parent.resolve().is_relative_to(into.resolve()):
        raise UsageError(f"archive {str(archive)!r}: expected names inside its folder, got {name!r}")
    return path


def _write(member: _Member, path: Path, archive: Path) -> None:
    if member.link:
        raise UsageError(f"archive {str(archive)!r}: expected files, got the link or device {member.name!r}")
    if path.is_file() and path.stat().st_size == member.size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with member.open() as source, part.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    if part.stat().st_size != member.size:
        raise EOFError(f"{member.name} cut short")
    part.replace(path)


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield _of_zip(zipped)
    else:
        with tarfile.open(archive, "r:*") as tarred:
            yield _of_tar(tarred)


def _of_zip(zipped: zipfile.ZipFile) -> Iterator[_Member]:
    for entry in zipped.infolist():
        if not entry.is_dir():
            link = stat.S_ISLNK(entry.external_attr >> 16)
            yield _Member(entry.filename, entry.file_size, link, partial(zipped.open, entry))


def _of_tar(tarred: tarfile.TarFile) -> Iterator[_Member]:
    for entry in tarred:
        if not entry.isdir():
            yield _Member(entry.name, entry.size, not entry.isfile(), partial(_opened, tarred, entry))


def _opened(tarred: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    opened = tarred.extractfile(entry)
    assert opened is not None
    return opened
