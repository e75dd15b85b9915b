"""Datasets: what there is, and how to build one by name."""

from __future__ import annotations

import logging
from pathlib import Path

from attnbench.config import near
from attnbench.data.ade20k import ADE20K
from attnbench.data.base import SegmentationDataset
from attnbench.data.camvid import CamVid
from attnbench.data.checked import Progress, partial_split
from attnbench.data.cityscapes import Cityscapes
from attnbench.data.coco_stuff import COCOStuff
from attnbench.data.files import FileDataset
from attnbench.data.folder import FILE, Folder, find_description, read_description
from attnbench.data.pascal_context import PascalContext59, PascalContext60
from attnbench.data.synthetic import ContextDataset
from attnbench.data.voc import PascalVOC
from attnbench.errors import UsageError

_LOG = logging.getLogger(__name__)

FILE_DATASETS: dict[str, type[FileDataset]] = {
    kind.name: kind for kind in (CamVid, PascalVOC, Cityscapes, ADE20K, PascalContext59, PascalContext60, COCOStuff)
}
"""Datasets that lie in files, by name."""

DATASETS = ("context", *FILE_DATASETS)
"""Names of the datasets; a folder with a `dataset.toml` adds its own."""


def build_dataset(
    name: str, *, split: str, root: str | Path | None = None, image_size: tuple[int, int] | None = None
) -> SegmentationDataset:
    """The dataset called `name`.

    Args:
        name: one of `DATASETS`, or the name in the `dataset.toml` of `root` or `root/name`.
        split: part of the dataset.
        root: folder of the dataset, or the one in which it lies; the embedded task `"context"` needs none.
        image_size: height and width that images are resized to; none keeps them.

    Raises:
        UsageError: if name or split is unknown, a folder is missing or not wanted, or its files are not what was
            expected.
    """
    if name == "context":
        return _context(split, root, image_size)
    if name in FILE_DATASETS:
        if root is None:
            raise UsageError(
                f"dataset {name!r}: expected its folder (--data-root or ATTNBENCH_DATA), got none; "
                f"scripts/prepare_data.py {name} downloads it or says how"
            )
        return FILE_DATASETS[name](root, split, image_size)
    if root is None:
        raise UsageError(f"unknown dataset {name!r}{near(name, DATASETS)}")
    return Folder(_description(Path(root), name), split, image_size)


def dataset_splits(name: str, root: str | Path) -> tuple[str, ...]:
    """Splits of a dataset in files.

    Args:
        name: name of the dataset.
        root: folder of the dataset, or the one in which it lies.

    Raises:
        UsageError: if there is no such dataset.
    """
    if name in FILE_DATASETS:
        return tuple(FILE_DATASETS[name].splits)
    return tuple(read_description(_description(Path(root), name))[1])


def check_dataset(dataset: SegmentationDataset, progress: Progress | None = None) -> None:
    """Decodes every file once, so that what is wrong is said before anything is trained; what passed is remembered.

    Args:
        dataset: what is checked; one that is drawn has nothing to check.
        progress: called after each pair of files that is decoded.

    A split of another number of images than it was published with is a warning.

    Raises:
        UsageError: naming the first file that is unreadable, whose mask is of another kind or size, or whose labels
            are out of range.
    """
    if isinstance(dataset, FileDataset):
        dataset.check(progress)
        if (partial := partial_split(dataset)) is not None:
            _LOG.warning("%s; what is trained or scored on it compares with no other's figures", partial)


def _context(split: str, root: str | Path | None, image_size: tuple[int, int] | None) -> ContextDataset:
    if root is not None:
        raise UsageError(f"dataset 'context': expected no folder, for it is drawn, got {str(root)!r}")
    if image_size is not None:
        raise UsageError(
            f"dataset 'context': expected no image_size, for its images are drawn at one size, got {image_size}"
        )
    return ContextDataset(split)


def _description(root: Path, name: str) -> Path:
    """The `dataset.toml` of a dataset that is not one of ours."""
    found = find_description(root, name)
    if found is None and (root / FILE).is_file():
        called = read_description(root / FILE)[0].name
        raise UsageError(
            f"unknown dataset {name!r}{near(name, (*DATASETS, called))}; {str(root / FILE)!r} is {called!r}"
        )
    if found is None:
        raise UsageError(
            f"unknown dataset {name!r}{near(name, DATASETS)}; data of your own needs {str(root / name / FILE)!r}"
        )
    called = read_description(found)[0].name
    if called != name:
        raise UsageError(f"{str(found)!r}, name: expected {name!r}, as its folder is called, got {called!r}")
    return found
