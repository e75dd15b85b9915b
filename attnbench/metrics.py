"""Scores of a segmentation over a whole dataset, from one confusion matrix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

IGNORE_INDEX = 255
"""Label of pixels that count neither in a loss nor in a score."""


@dataclass(frozen=True)
class Scores:
    """What one confusion matrix says; every score is a fraction from 0 to 1.

    Args:
        miou: mean of `iou` over the classes that have one.
        macc: mean over the classes in the target of the fraction of their pixels that were found.
        aacc: fraction of the labelled pixels that are right.
        iou: intersection over union of each class; none where a class occurs neither in target nor in prediction.
        boundary_f: mean of `boundary_f_of_class` over the classes that have one; none where it was not computed.
        boundary_f_of_class: boundary F-score of each class; none where no target has a boundary of the class.
    """

    miou: float
    macc: float
    aacc: float
    iou: tuple[float | None, ...]
    boundary_f: float | None = None
    boundary_f_of_class: tuple[float | None, ...] = ()

    def boundary_fields(self) -> dict[str, float | list[float | None]]:
        """What a record says of the boundary F-score: nothing where it was not computed or no class has a boundary."""
        if self.boundary_f is None:
            return {}
        return {"boundary_f": self.boundary_f, "boundary_f_of_class": list(self.boundary_f_of_class)}


def classes_of(logits: Tensor) -> Tensor:
    """Class of each pixel, that of the largest logit and the first of equals: `(B, num_classes, H, W) -> (B, H, W)`.

    Example:
        >>> classes_of(torch.tensor([0.0, 2.0, 2.0]).view(1, 3, 1, 1)).item()
        1
    """
    # on a CPU, argmax across the planes takes five times as long to find the same
    return logits.max(1).indices


class ConfusionMatrix:
    """Counts of (target, prediction) over all labelled pixels of a dataset.

    Equation: with counts `n[t, p]`, `IoU_c = n[c, c] / (sum_p n[c, p] + sum_t n[t, c] - n[c, c])`.

    Args:
        num_classes: number of classes; pixels whose target is 255 are left out.
        device: where the counts are kept.

    Example:
        >>> matrix = ConfusionMatrix(3)
        >>> matrix.update(torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 1, 0, 255]]))
        >>> scores = matrix.scores()
        >>> scores.miou, scores.macc, scores.iou
        (0.5, 0.75, (0.5, 0.5, None))
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        if num_classes < 2:
            raise ValueError(f"ConfusionMatrix: expected num_classes >= 2, got {num_classes!r}")
        self.num_classes = num_classes
        self._counts = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE_INDEX, validate_args=False)
        self._counts.to(device)

    def update(self, logits_or_labels: Tensor, target: Tensor) -> None:
        """Adds a batch of predictions.

        Args:
            logits_or_labels: logits `(B, num_classes, H, W)` or labels of the target's shape.
            target: labels; 255 where a pixel does not count.

        Raises:
            ValueError: if the shapes do not fit, or a label is out of range.
        """
        labels = logits_or_labels
        if labels.ndim == target.ndim + 1 and labels.shape[1] == self.num_classes:
            labels = classes_of(labels)
        if labels.shape != target.shape:
            raise ValueError(
                f"ConfusionMatrix: expected logits (B, {self.num_classes}, H, W) or labels of the target's shape "
                f"{tuple(target.shape)}, got {tuple(logits_or_labels.shape)}"
            )
        target = target.long()
        strange = (target != IGNORE_INDEX) & ((target < 0) | (target >= self.num_classes))
        if bool(strange.any()) or bool(((labels < 0) | (labels >= self.num_classes)).any()):
            raise ValueError(
                f"ConfusionMatrix: expected labels 0..{self.num_classes - 1}, and {IGNORE_INDEX} in the target alone, "
                f"got targets up to {int(target.max())} and predictions up to {int(labels.max())}"
            )
        with _counting():
            self._counts.update(labels.long(), target)

    @property
    def counts(self) -> Tensor:
        """Counts `(num_classes, num_classes)`, rows are targets."""
        counts: Tensor = self._counts.confmat
        return counts.cpu()

    def scores(self) -> Scores:
        """Scores of all that was added.

        Raises:
            ValueError: if no labelled pixel was added.
        """
        return scores_of(self.counts)


@contextmanager
def _counting() -> Iterator[None]:
    """Context without deterministic algorithms: counts are integers, the same in any order of adding.

    Asked for one, torchmetrics compares every pixel with every cell of the matrix: 50 GB for an image of 150 classes.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def scores_of(counts: Tensor) -> Scores:
    """Scores of a matrix of counts, rows are targets; the counts may be expected values.

    Raises:
        ValueError: if the matrix is empty.
    """
    counts = counts.double()
    right, targets = counts.diag(), counts.sum(1)
    union = targets + counts.sum(0) - right
    if not bool(union.any()):
        raise ValueError("scores: expected at least one labelled pixel, got none")
    iou = tuple(float(r / u) if u > 0 else None for r, u in zip(right, union, strict=True))
    present = targets > 0
    known = [value for value in iou if value is not None]
    return Scores(
        miou=sum(known) / len(known),
        macc=float((right[present] / targets[present]).mean()),
        aacc=float(right.sum() / counts.sum()),
        iou=iou,
    )
