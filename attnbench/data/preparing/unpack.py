"""Unpacking of zip and tar files: nothing lands outside the folder, and no file stands half written."""

from __future__ import annotations

import errno
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
from typing import IO, Self

from attnbench.errors import UsageError

_BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError)

_CHUNK = 1 << 20

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
    with _breakage_told(archive):
        if not zipfile.is_zipfile(archive):
            # damage of a tar file may show at its end alone, when files of the right size are written already
            _expect_whole_tar(archive)
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
    if not number:
        raise UsageError(f"archive {str(archive)!r}: expected files under {prefix!r}, got none")
    return number


def expect_whole(archive: Path) -> None:
    """Reads an archive to its end, against its own checksums.

    Args:
        archive: zip or tar file, the latter compressed or not.

    Raises:
        UsageError: if it is broken or cut short.
    """
    with _breakage_told(archive):
        if zipfile.is_zipfile(archive):
            _expect_whole_zip(archive)
        else:
            _expect_whole_tar(archive)


def _expect_whole_zip(archive: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        damaged = zipped.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} damaged")


def _expect_whole_tar(archive: Path) -> None:
    with _opened_tar(archive) as tarred:
        for _ in tarred:
            pass
        # the checksum of a compressed file lies behind the end of the tar file in it
        assert tarred.fileobj is not None
        while tarred.fileobj.read(_CHUNK):
            pass


@contextmanager
def _breakage_told(archive: Path) -> Iterator[None]:
    """What a broken archive makes its reader raise, as an error of one line."""
    try:
        yield
    except (*_BROKEN, OSError) as error:
        # decompression raises OSErrors without a number; a broken zip file leads to places before its beginning
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise UsageError(
            f"archive {str(archive)!r}: expected a whole zip or tar file, got {' '.join(str(error).split())}; "
            "delete it to download it anew"
        ) from error


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
        shutil.copyfileobj(source, file, _CHUNK)
    if part.stat().st_size != member.size:
        raise EOFError(f"{member.name} cut short")
    part.replace(path)


class _StrictHeader(tarfile.TarInfo):
    """A header whose faults are errors: `tarfile` takes a broken one, and a missing one, for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """The header in a block; an error unless it is one, or the block of zeros that ends an archive."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise tarfile.ReadError(f"{error} in place of a file or the end") from error


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield _of_zip(zipped)
    else:
        with _opened_tar(archive) as tarred:
            yield _of_tar(tarred)


def _opened_tar(archive: Path) -> tarfile.TarFile:
    return tarfile.open(archive, "r:*", tarinfo=_StrictHeader)


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
