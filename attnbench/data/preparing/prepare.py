"""One dataset from its addresses to what the loader reads: download, unpack, convert; each step once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from attnbench.data import FILE_DATASETS
from attnbench.data.files import names_in
from attnbench.data.preparing.convert import write_text
from attnbench.data.preparing.download import digest, download, verify
from attnbench.data.preparing.sources import Archive, Source
from attnbench.data.preparing.unpack import unpack
from attnbench.errors import UsageError

Shown = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is done, and of how much."""

DOWNLOADS = "downloads"
"""Folder of the archives, under the data root."""


def is_there(name: str, root: Path) -> bool:
    """Whether every split of a dataset has its lists and files, and as many images as were published."""
    kind = FILE_DATASETS[name]
    try:
        return all(len(kind(root, split)) == kind.published.get(split, -1) for split in kind.published)
    except UsageError:
        return False


def place(name: str, source: Source, root: Path) -> Path:
    """The folder to unpack under, so that the files land where the loader looks.

    The loader takes the dataset's own folder before one inside it: what is missing belongs beside what is there.

    Args:
        name: name of the dataset.
        source: where it comes from.
        root: the dataset's own folder, or the one in which it lies or shall lie.

    Raises:
        UsageError: if it is the dataset's own folder under a name that archives are not unpacked to.
    """
    try:
        own = FILE_DATASETS[name].find(root)
    except UsageError:
        return root
    if own != root:
        return root
    home = PurePosixPath(source.home).parts
    for path in (root.absolute(), root.resolve()):
        if path.parts[-len(home) :] == home:
            return path.parents[len(home) - 1]
    around = root.resolve().parent
    raise UsageError(
        f"data root {str(root)!r}: expected a folder around the dataset's own, got its own under another name than "
        f"{source.home}; pass {str(around)!r}, and move the files to {str(around / source.home)!r} to keep them"
    )


def state(archive: Archive, root: Path) -> str:
    """What has become of an archive: `"unpacked"`, `"downloaded"`, `"in part"`, `"to download"` or `"by hand"`."""
    path = root / DOWNLOADS / archive.file
    if _receipt(path).is_file() or _holds(archive, root / archive.into):
        return "unpacked"
    if path.is_file():
        return "downloaded"
    if archive.url is None:
        return "by hand"
    return "in part" if path.with_name(f"{path.name}.part").is_file() else "to download"


def prepare(source: Source, root: Path, shown: Shown) -> None:
    """Downloads, unpacks and converts what is not there yet; a run that was stopped goes on where it stopped.

    Args:
        source: what to get.
        root: folder of the data.
        shown: called as it goes on.

    Raises:
        UsageError: if a file has to be downloaded by hand first, or a step failed for a reason that a user can mend.
    """
    _expect_by_hand(source, root)
    try:
        for archive in source.archives:
            if state(archive, root) != "unpacked":
                _fetch(archive, root, shown)
        if source.convert is not None:
            source.convert(root, lambda done, total: shown("convert", done, total))
    except OSError as error:
        raise UsageError(f"data root {str(root)!r}: expected a folder that can be written, got {error}") from error


def _expect_by_hand(source: Source, root: Path) -> None:
    missing = [archive.file for archive in source.archives if state(archive, root) == "by hand"]
    if missing:
        raise UsageError(
            f"{source.title}: expected {' and '.join(missing)} in {str(root / DOWNLOADS)!r}; "
            f"download with a login of your own from {source.page}, then run this again"
        )


def _fetch(archive: Archive, root: Path, shown: Shown) -> None:
    path = root / DOWNLOADS / archive.file
    if path.is_file():
        if archive.checksum is not None:
            shown(f"verify {archive.file}", 0, None)
            _verify_by_hand(path, archive.checksum)
    elif archive.url is not None:
        download(
            archive.url,
            path,
            checksum=archive.checksum,
            progress=lambda done, total: shown(f"download {archive.file}", done, total),
        )
    shown(f"unpack {archive.file}", 0, None)
    files = 0

    def count() -> None:
        nonlocal files
        files += 1
        shown(f"unpack {archive.file}", files, None)

    number = unpack(path, root / archive.into, prefix=archive.prefix, wanted=archive.wanted, progress=count)
    _write_receipt(archive, path, number)


def _verify_by_hand(path: Path, checksum: str) -> None:
    try:
        verify(path, checksum)
    except UsageError as error:
        raise UsageError(f"{error}; delete it to download it anew, or put the right one there") from error


def _holds(archive: Archive, into: Path) -> bool:
    """Whether all of an archive is there already, from elsewhere; not known of one whose numbers are not."""
    return bool(archive.holds) and all(
        sum(not name.endswith(".part") for name in names_in(into / folder)) >= number
        for folder, number in archive.holds.items()
    )


def _receipt(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_receipt(archive: Archive, path: Path, number: int) -> None:
    """Notes what was unpacked: size and sha256 tell a later reader which file it was, also where none is published."""
    values = {
        "url": archive.url,
        "bytes": path.stat().st_size,
        "sha256": digest(path, "sha256"),
        "published": archive.checksum,
        "files": number,
    }
    write_text(_receipt(path), json.dumps(values, indent=1) + "\n")
