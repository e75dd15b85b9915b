"""A dataset as the network of a checkpoint file was trained to read it."""

from __future__ import annotations

import copy
from pathlib import Path

from attnbench.data.base import SegmentationDataset
from attnbench.errors import UsageError
from attnbench.models.saved import Saved


def as_trained(dataset: SegmentationDataset, saved: Saved, path: Path) -> SegmentationDataset:
    """`dataset` with the mean and the standard deviation that the network was trained with, where its file says.

    Args:
        dataset: what is read.
        saved: the network.
        path: its file, for errors.

    Raises:
        UsageError: if the file has another number of classes, or names, as those of `train.py` do, and they or their
            order are others.
    """
    if saved.num_classes != len(dataset.classes):
        raise UsageError(
            f"checkpoint {str(path)!r}: expected the {len(dataset.classes)} classes of dataset {dataset.name!r}, "
            f"got {saved.num_classes}"
        )
    if saved.mean is None or saved.std is None:
        return dataset
    for label, (trained, here) in enumerate(zip(saved.classes, dataset.classes, strict=True)):
        if trained != here:
            raise UsageError(
                f"checkpoint {str(path)!r}: expected the classes of dataset {dataset.name!r}, "
                f"got {trained!r} in place of {here!r} as class {label}"
            )
    read = copy.copy(dataset)
    read.mean, read.std = saved.mean, saved.std
    return read
