"""Every file of a split decoded once before anything is trained; what has passed is remembered for the next run."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from attnbench.data.base import check_pair
from attnbench.errors import UsageError
from attnbench.metrics import IGNORE_INDEX

if TYPE_CHECKING:
    from attnbench.data.files import FileDataset

Progress = Callable[[int, int], None]
"""Called with the pairs of files that are done, and their number."""

_CHECK = "a pixel counts"
"""What a check found out that older ones did not: what passed those is checked again."""

_READERS = 8
"""Threads that read: on a cold or distant disk the wait for one file is another's time."""


def check_files(dataset: FileDataset, progress: Progress | None = None) -> None:
    """Reads every header, which finds most faults within a second, and then decodes every image and mask.

    Files that passed are not decoded again while their sizes and times are the same.

    Raises:
        UsageError: naming the first file that is missing, unreadable or of another kind or size, or has labels out of
            range; or the split, if no pixel in it counts.
    """
    remembered = _remembered_in(dataset)
    signature = _signature(dataset)
    with contextlib.suppress(OSError):
        if remembered.read_text(encoding="ascii") == signature:
            return
    pool = ThreadPoolExecutor(max(_READERS, os.cpu_count() or 1))
    try:
        for _ in pool.map(lambda pair: check_pair(*pair, modes=dataset.mask_modes), dataset.pairs):
            pass
        labelled = False
        for done, counts in enumerate(pool.map(lambda index: _decode(dataset, index), range(len(dataset))), start=1):
            labelled |= counts
            if progress is not None:
                progress(done, len(dataset))
    finally:
        pool.shutdown(cancel_futures=True)
    if not labelled:
        raise UsageError(nothing_labelled(dataset))
    with contextlib.suppress(OSError):
        remembered.parent.mkdir(parents=True, exist_ok=True)
        partial = remembered.with_suffix(f".{os.getpid()}")
        partial.write_text(signature, encoding="ascii")
        partial.replace(remembered)


def nothing_labelled(dataset: FileDataset) -> str:
    """What is said of a split that can neither be trained on nor scored."""
    where = f"{dataset.name} split {dataset.split!r}"
    return f"{where}: expected at least one labelled pixel, got none in {len(dataset)} masks"


def partial_split(dataset: FileDataset) -> str | None:
    """What is said of a split that has more or fewer images than it was published with, whose scores are its own."""
    expected = dataset.published.get(dataset.split)
    if expected is None or expected == len(dataset):
        return None
    return f"{dataset.name} split {dataset.split!r}: expected {expected} images as published, got {len(dataset)}"


def _decode(dataset: FileDataset, index: int) -> bool:
    """Whether a pixel of this mask counts."""
    return bool((dataset.decode(index)[1] != IGNORE_INDEX).any())


def _remembered_in(dataset: FileDataset) -> Path:
    """The file that says what has passed: one for each place of a split."""
    home = Path(os.environ.get("ATTNBENCH_CACHE") or platformdirs.user_cache_dir("attnbench"))
    place = f"{dataset.name}\n{dataset.split}\n{dataset.root.resolve()}"
    return home / "checked" / hashlib.sha256(place.encode()).hexdigest()[:24]


def _signature(dataset: FileDataset) -> str:
    """Hash of what a check depends on: kind and values that masks may have, and path, size and time of every file."""
    digest = hashlib.sha256(f"{_CHECK}\n{dataset.mask_meaning()}".encode())
    for pair in dataset.pairs:
        for what, path in zip(("image", "mask"), pair, strict=True):
            try:
                found = path.stat()
            except OSError as error:
                raise UsageError(f"{what} {str(path)!r}: expected an existing file, got none") from error
            digest.update(repr((str(path), found.st_size, found.st_mtime_ns)).encode())
    return digest.hexdigest()
