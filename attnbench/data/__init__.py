"""Datasets: what there is, and how to build one by name."""

from __future__ import annotations

from pathlib import Path

from attnbench.config import near
from attnbench.data.base import SegmentationDataset
from attnbench.data.camvid import CamVid
from attnbench.data.synthetic import ContextDataset
from attnbench.errors import UsageError

DATASETS = ("context", "camvid")
"""Names of the datasets."""


def build_dataset(
    name: str, *, split: str, root: str | Path | None = None, image_size: tuple[int, int] | None = None
) -> SegmentationDataset:
    """The dataset called `name`.

    Args:
        name: `"context"` or `"camvid"`.
        split: part of the dataset.
        root: folder of the dataset; the embedded task `"context"` needs none.
        image_size: height and width that images are resized to; none keeps them.

    Raises:
        UsageError: if name or split is unknown, a folder is missing or not wanted, or its files are not what was
            expected.
    """
    if name not in DATASETS:
        raise UsageError(f"unknown dataset {name!r}{near(name, DATASETS)}")
    if name == "context":
        if root is not None:
            raise UsageError(f"dataset 'context': expected no folder, for it is drawn, got {str(root)!r}")
        if image_size is not None:
            raise UsageError(
                f"dataset 'context': expected no image_size, for its images are drawn at one size, got {image_size}"
            )
        return ContextDataset(split)
    if root is None:
        raise UsageError(f"dataset {name!r}: expected its folder (--data-root), got none")
    return CamVid(root, split, image_size)
