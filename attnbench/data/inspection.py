"""A look at every pixel of a split: what is broken, which sizes there are, and how often each class occurs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from attnbench.data.checked import nothing_labelled, partial_split
from attnbench.data.files import FileDataset
from attnbench.errors import UsageError
from attnbench.metrics import IGNORE_INDEX

Progress = Callable[[int, int], None]
"""Called with the images that are done, and their number."""

_AHEAD = 4
"""Images that wait to be counted, for each thread: few enough to fit into memory at any size."""


@dataclass
class Inspection:
    """What a split holds.

    Args:
        split: name of the split.
        images: images that could be read.
        sizes: number of images of each height and width.
        pixels: pixels of each class, and last those that do not count.
        problems: what is wrong, a line for each file.
    """

    split: str
    images: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    problems: list[str] = field(default_factory=list)

    @property
    def ignored(self) -> float:
        """Share of the pixels that do not count."""
        return float(self.pixels[-1] / max(1, self.pixels.sum()))

    @property
    def absent(self) -> list[int]:
        """Classes without a pixel."""
        return [int(label) for label in np.flatnonzero(self.pixels[:-1] == 0)]


def inspect(dataset: FileDataset, progress: Progress | None = None) -> Inspection:
    """Decodes every image and mask of a split, and goes on where one is broken.

    Cost: about as long as one epoch of loading, with all cores.

    Args:
        dataset: the split, without `image_size`.
        progress: called after each image.
    """
    num_classes = len(dataset.classes)
    found = Inspection(dataset.split, pixels=np.zeros(num_classes + 1, np.int64))
    if (partial := partial_split(dataset)) is not None:
        found.problems.append(partial)
    found.problems += [f"mask {str(path)!r}: expected an image of its own, got none" for path in dataset.unpaired()]
    for done, result in enumerate(_results(dataset), start=1):
        if isinstance(result, UsageError):
            found.problems.append(str(result))
        else:
            size, counts = result
            found.images += 1
            found.sizes[size] += 1
            found.pixels += counts
        if progress is not None:
            progress(done, len(dataset))
    if found.images == len(dataset) and not found.pixels[:-1].any():
        found.problems.append(nothing_labelled(dataset))
    return found


_Counted = tuple[tuple[int, int], NDArray[np.int64]]


def _results(dataset: FileDataset) -> Iterator[_Counted | UsageError]:
    """Results in order, while the threads are only a little ahead."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        indices = iter(range(len(dataset)))
        waiting: list[Future[_Counted | UsageError]] = [
            pool.submit(_count, dataset, index) for index in islice(indices, _AHEAD * threads)
        ]
        while waiting:
            yield waiting.pop(0).result()
            waiting.extend(pool.submit(_count, dataset, index) for index in islice(indices, 1))


def _count(dataset: FileDataset, index: int) -> _Counted | UsageError:
    try:
        _, target = dataset.load(index)
    except UsageError as error:
        return error
    labels = target.numpy()
    counts = np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)
    height, width = labels.shape
    return (height, width), np.append(counts[: len(dataset.classes)], counts[IGNORE_INDEX])
