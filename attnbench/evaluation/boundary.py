"""Boundary F-score: how near predicted outlines run to those of the target."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnbench.metrics import IGNORE_INDEX

TOLERANCE = 0.0075
"""Distance up to which outlines match, as a share of the image's diagonal."""

_Points = NDArray[np.intp]


class BoundaryScore:
    """F-score of boundary pixels for each class, averaged over images.

    A pixel of a class is on its boundary if one of its four neighbours is of another class; neither may be ignored.
    The edge of the image is no boundary, and neither is that of an ignored region: where a ring of ignored pixels
    surrounds every object, as in Pascal VOC, few boundaries are left.

    Equation: with boundaries `T` of the target and `P` of the prediction of one class in one image,
    `precision = |{p in P: d(p, T) <= t}| / |P|`, `recall = |{q in T: d(q, P) <= t}| / |T|`,
    `F = 2 precision recall / (precision + recall)`, and 0 where `P` is empty, with Euclidean distance `d` and
    `t = max(1, 0.0075 sqrt(H^2 + W^2))` pixels. The score of a class is the mean of `F` over the images in which `T`
    is not empty.

    Args:
        num_classes: number of classes; pixels whose target is 255 are left out.

    Cost:
        `O(n log n)` for an image with `n` boundary pixels, on the CPU.

    Source:
        Csurka et al.: What is a good evaluation measure for semantic segmentation? BMVC, 2013.
        Perazzi et al.: A benchmark dataset and evaluation methodology for video object segmentation. CVPR, 2016.

    Deviations:
        A tolerance below one pixel is one pixel: on small images nothing but equal boundaries would match.

    Example:
        >>> target = torch.zeros(1, 8, 8, dtype=torch.long)
        >>> target[..., 4:] = 1
        >>> score = BoundaryScore(3)
        >>> score.update(target.roll(1, -1), target)
        >>> score.of_class()
        (0.6666666666666666, 0.6666666666666666, None)
    """

    def __init__(self, num_classes: int) -> None:
        self.sums = np.zeros(num_classes)
        self.images = np.zeros(num_classes, dtype=np.int64)

    def update(self, labels: Tensor, target: Tensor) -> None:
        """Adds a batch of predictions.

        Args:
            labels: predicted classes `(B, H, W)`.
            target: classes `(B, H, W)`; 255 where a pixel does not count.

        Raises:
            ValueError: if the shapes differ.
        """
        if labels.shape != target.shape or labels.ndim != 3:
            raise ValueError(
                f"BoundaryScore: expected labels and target (B, H, W) of one shape, got {tuple(labels.shape)} and "
                f"{tuple(target.shape)}"
            )
        for predicted, wanted in zip(labels.cpu().numpy(), target.cpu().numpy(), strict=True):
            self._add(predicted, wanted)

    def _add(self, labels: NDArray[Any], target: NDArray[Any]) -> None:
        tolerance = max(1.0, TOLERANCE * math.hypot(*target.shape))
        counted = target != IGNORE_INDEX
        predicted = boundaries(labels, counted)
        for label, wanted in boundaries(target, counted).items():
            found = predicted.get(label)
            self.images[label] += 1
            if found is not None:
                precision, recall = _near(found, wanted, tolerance), _near(wanted, found, tolerance)
                self.sums[label] += 2 * precision * recall / (precision + recall) if precision and recall else 0.0

    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Adds what other processes counted: `total` is called with the sums, and with the numbers of images."""
        self.sums = total(torch.from_numpy(self.sums)).numpy()
        self.images = total(torch.from_numpy(self.images)).numpy()

    def of_class(self) -> tuple[float | None, ...]:
        """Score of each class; none for a class without a boundary in any target."""
        return tuple(
            float(total / images) if images else None for total, images in zip(self.sums, self.images, strict=True)
        )

    def mean(self) -> float | None:
        """Mean over the classes that have a score; none where no class has one."""
        known = [value for value in self.of_class() if value is not None]
        return math.fsum(known) / len(known) if known else None


def boundaries(labels: NDArray[Any], counted: NDArray[np.bool_]) -> dict[int, _Points]:
    """Row and column of the boundary pixels of each class that has any.

    Args:
        labels: class of each pixel.
        counted: which pixels count.
    """
    edge = np.zeros(labels.shape, dtype=bool)
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differ = (labels[first] != labels[second]) & counted[first] & counted[second]
        edge[first] |= differ
        edge[second] |= differ
    points = np.argwhere(edge)
    of_point = labels[edge]
    return {int(label): points[of_point == label] for label in np.unique(of_point)}


def _near(points: _Points, others: _Points, tolerance: float) -> float:
    """Share of `points` that have one of `others` within `tolerance`."""
    # a second's import, for those alone who want this score
    from scipy.spatial import KDTree

    # the tree looks for what is strictly nearer; distances are roots of integers, so that none lies in between
    distance = KDTree(others).query(points, distance_upper_bound=tolerance * (1 + 1e-9))[0]
    return float(np.isfinite(distance).mean())
