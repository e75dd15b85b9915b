"""Scoring a segmentor on a dataset, at the size of its images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from attnbench.config import WHOLE, Amp, Inference
from attnbench.data.base import SegmentationDataset
from attnbench.data.loading import samples_in_order
from attnbench.data.transforms import collate, normalise
from attnbench.errors import UsageError
from attnbench.evaluation.boundary import BoundaryScore
from attnbench.evaluation.inference import evaluating, segment
from attnbench.metrics import IGNORE_INDEX, ConfusionMatrix, Scores, classes_of, scores_of
from attnbench.training import autocast


def evaluate(
    model: nn.Module,
    dataset: SegmentationDataset,
    *,
    device: torch.device | str,
    batch_size: int = 8,
    amp: Amp = "off",
    inference: Inference = WHOLE,
    boundary: bool = False,
    progress: Callable[[int, int], None] | None = None,
    add_up: Callable[[Tensor], Tensor] = lambda counts: counts,
    num_workers: int = 0,
) -> Scores:
    """Scores over all labelled pixels of `dataset`, at the size of its images.

    Neighbouring images of equal size share a batch. The training flag of every module is as it was afterwards.

    Args:
        model: images `(B, 3, H, W)` -> logits `(B, classes, H, W)`.
        dataset: images and targets.
        device: where the model runs.
        batch_size: largest number of images in a batch.
        amp: autocast precision of the forward pass.
        inference: how images are read; by default whole and once.
        boundary: whether the boundary F-score is computed, too.
        progress: called with the number of images done and their total.
        add_up: adds the counts of this dataset to those of the parts that other processes score.
        num_workers: processes that load; the result does not depend on it.

    Raises:
        UsageError: if the dataset is empty, has no labelled pixel or a label beyond its classes, or the precision does
            not exist on the device.
        ValueError: if the logits do not fit the targets.
    """
    if len(dataset) == 0:
        raise UsageError(f"dataset {dataset.name!r}: expected at least one image to score, got none")
    device = torch.device(device)
    matrix = ConfusionMatrix(len(dataset.classes), device)
    outlines = BoundaryScore(len(dataset.classes)) if boundary else None
    model.to(device)
    done = 0
    with evaluating(model), torch.inference_mode():
        for images, targets in _batches(dataset, batch_size, num_workers):
            inputs = normalise(images, dataset.mean, dataset.std).to(device)
            with autocast(device, amp):
                logits = segment(model, inputs, inference)
            matrix.update(logits, targets.to(device))
            if outlines is not None:
                outlines.update(classes_of(logits), targets)
            done += len(images)
            if progress is not None:
                progress(done, len(dataset))
    counts = add_up(matrix.counts)
    if not bool(counts.any()):
        raise UsageError(f"dataset {dataset.name!r}: expected at least one labelled pixel to score, got none")
    scores = scores_of(counts)
    if outlines is None:
        return scores
    outlines.add_up(add_up)
    return dataclasses.replace(scores, boundary_f=outlines.mean(), boundary_f_of_class=outlines.of_class())


def _batches(dataset: SegmentationDataset, batch_size: int, num_workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    waiting: list[tuple[Tensor, Tensor]] = []
    for index, sample in enumerate(samples_in_order(dataset, num_workers=num_workers)):
        _expect_labels(sample[1], dataset, index)
        if waiting and (len(waiting) == batch_size or sample[1].shape != waiting[0][1].shape):
            yield collate(waiting)
            waiting = []
        waiting.append(sample)
    yield collate(waiting)


def _expect_labels(target: Tensor, dataset: SegmentationDataset, index: int) -> None:
    classes = len(dataset.classes)
    strange = target[(target != IGNORE_INDEX) & ((target < 0) | (target >= classes))]
    if len(strange):
        raise UsageError(
            f"dataset {dataset.name!r}, image {index}: expected labels 0..{classes - 1} and {IGNORE_INDEX}, "
            f"got {int(strange[0])}"
        )
