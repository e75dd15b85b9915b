"""Scoring a segmentor on a dataset, at the size of its images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from attnbench.config import Amp
from attnbench.data.base import SegmentationDataset
from attnbench.data.transforms import collate, normalise
from attnbench.errors import UsageError
from attnbench.metrics import ConfusionMatrix, Scores, scores_of
from attnbench.training import autocast


def evaluate(
    model: nn.Module,
    dataset: SegmentationDataset,
    *,
    device: torch.device | str,
    batch_size: int = 8,
    amp: Amp = "off",
    progress: Callable[[int, int], None] | None = None,
    add_up: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> Scores:
    """Scores over all labelled pixels of `dataset`, without resizing, cropping or mirroring.

    Neighbouring images of equal size share a batch. The training flag of every module is as it was afterwards.

    Args:
        model: images `(B, 3, H, W)` -> logits `(B, classes, H, W)`.
        dataset: images and targets.
        device: where the model runs.
        batch_size: largest number of images in a batch.
        amp: autocast precision of the forward pass.
        progress: called with the number of images done and their total.
        add_up: adds the counts of this dataset to those of the parts that other processes score.

    Raises:
        UsageError: if the dataset is empty, or the precision does not exist on the device.
        ValueError: if the logits do not fit the targets.
    """
    if len(dataset) == 0:
        raise UsageError(f"dataset {dataset.name!r}: expected at least one image to score, got none")
    device = torch.device(device)
    matrix = ConfusionMatrix(len(dataset.classes), device)
    flags = [(module, module.training) for module in model.modules()]
    model.to(device).eval()
    done = 0
    try:
        with torch.inference_mode():
            for images, targets in _batches(dataset, batch_size):
                inputs = normalise(images, dataset.mean, dataset.std).to(device)
                with autocast(device, amp):
                    logits = model(inputs)
                matrix.update(logits, targets.to(device))
                done += len(images)
                if progress is not None:
                    progress(done, len(dataset))
    finally:
        for module, training in flags:
            module.training = training
    return scores_of(add_up(matrix.counts))


def _batches(dataset: SegmentationDataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    waiting: list[tuple[Tensor, Tensor]] = []
    for index in range(len(dataset)):
        sample = dataset[index]
        if waiting and (len(waiting) == batch_size or sample[1].shape != waiting[0][1].shape):
            yield collate(waiting)
            waiting = []
        waiting.append(sample)
    yield collate(waiting)
