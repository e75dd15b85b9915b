"""What training minimises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from attnbench.metrics import IGNORE_INDEX
from operators.interface import Auxiliary
from operators.layers import interpolation_matrix


@dataclass(frozen=True)
class PixelWeights:
    """How much each pixel counts.

    Args:
        classes: weight of each class, `(classes,)`; none weighs them alike.
        ohem_threshold: pixels whose class has at least this probability are left out; 0 leaves out none.
        ohem_min_kept: pixels of each image that count all the same, the hardest of the batch first.
    """

    classes: Tensor | None = None
    ohem_threshold: float = 0.0
    ohem_min_kept: int = 100_000


@dataclass(frozen=True)
class BatchCount:
    """What the losses of a step are divided by; micro-batches and processes add theirs up before the first of them.

    Args:
        pixels: summed weight of the labelled pixels: their number where classes weigh alike.
        images: number of images.
    """

    pixels: Tensor
    images: Tensor

    def __add__(self, other: BatchCount) -> BatchCount:
        """Counts of both."""
        return BatchCount(self.pixels + other.pixels, self.images + other.images)


EQUAL = PixelWeights()
"""Every labelled pixel counts, and all alike."""


def batch_count(target: Tensor, weights: PixelWeights = EQUAL) -> BatchCount:
    """What the losses of a batch are divided by; it depends on the target alone.

    Args:
        target: labels `(B, H, W)`, 255 where a pixel does not count.
        weights: how much each pixel counts.

    Example:
        >>> batch_count(torch.tensor([[[0, 1, 255]]])).pixels
        tensor(2)
    """
    labelled = target != IGNORE_INDEX
    images = torch.tensor(target.shape[0], device=target.device)
    if weights.classes is None:
        return BatchCount(labelled.sum(), images)
    # of counts, not of a weight for each pixel: those would be added in no fixed order on CUDA
    occurring = torch.bincount(target.flatten(), minlength=IGNORE_INDEX + 1)[: len(weights.classes)]  # (classes,)
    return BatchCount((occurring * weights.classes).sum(), images)


def pixel_loss_sum(logits: Tensor, target: Tensor, weights: PixelWeights = EQUAL) -> tuple[Tensor, Tensor]:
    """Cross-entropy as the sum over the labelled pixels of the batch, and what to divide it by for the mean.

    Equation: `sum_n k_n w_(y_n) (-log p_n)` and `sum_n w_(y_n)`, with `p_n` the probability of the pixel's class `y_n`
    and `k_n` 1 or, where OHEM leaves the pixel out, 0.

    Args:
        logits: `(B, classes, h, w)`, resized bilinearly to the target where their size differs.
        target: labels `(B, H, W)`, 255 where a pixel does not count.
        weights: how much each pixel counts.

    Deviations:
        mmsegmentation divides by the unlabelled pixels, too, unless it is told otherwise (`avg_non_ignore`). Of the
        pixels that OHEM leaves out both count in the divisor, so that it is known before the forward pass.
    """
    logits = logits.float()
    if logits.shape[-2:] != target.shape[-2:]:
        # matrix products instead of F.interpolate: its backward pass is slow on CPU, and on CUDA adds with atomics
        rows, columns = (
            interpolation_matrix(source, size, logits)
            for source, size in zip(logits.shape[-2:], target.shape[-2:], strict=True)
        )
        logits = rows @ logits @ columns.t()  # (B, classes, H, W)
    # summed outside: the sum inside adds with atomics on CUDA, in no fixed order
    losses = F.cross_entropy(logits, target, weights.classes, ignore_index=IGNORE_INDEX, reduction="none")  # (B, H, W)
    if weights.ohem_threshold > 0:
        losses = losses * hard_pixels(logits.detach(), target, weights.ohem_threshold, weights.ohem_min_kept)
    return losses.sum(), batch_count(target, weights).pixels


@torch.no_grad()
def hard_pixels(logits: Tensor, target: Tensor, threshold: float, min_kept: int) -> Tensor:
    """Online hard example mining: the labelled pixels whose class has a probability below a threshold.

    Equation: `p_n < max(threshold, p_(k))`, with `p_(k)` the probability at place `k = min(B min_kept, V - 1)`, counted
    from 0, of the ascending probabilities of the `V` labelled pixels of the batch.

    Args:
        logits: `(B, classes, H, W)`.
        target: labels `(B, H, W)`, 255 where a pixel does not count.
        threshold: a probability.
        min_kept: pixels of each image that count all the same.

    Returns:
        Truths `(B, H, W)`.

    Source:
        Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016, as
        mmsegmentation's `OHEMPixelSampler` has it for pixels.

    Example:
        >>> logits = torch.tensor([[[[0.0, 3.0, 3.0]], [[0.0, 0.0, 0.0]]]])
        >>> hard_pixels(logits, torch.tensor([[[0, 0, 255]]]), 0.7, 0)
        tensor([[[ True, False, False]]])
    """
    labelled = target != IGNORE_INDEX
    classes = target.where(labelled, 0).unsqueeze(1)
    probability = logits.float().softmax(1).gather(1, classes).squeeze(1)  # (B, H, W)
    ordered = probability[labelled].sort().values
    if len(ordered):
        place = min(min_kept * target.shape[0], len(ordered) - 1)
        return labelled & (probability < ordered[place].clamp(min=threshold))
    return labelled


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return total / torch.where(count > 0, count, 1)


def pixel_loss(logits: Tensor, target: Tensor, weights: PixelWeights = EQUAL) -> Tensor:
    """Cross-entropy as the mean over all labelled pixels of the batch, 0 where there is none.

    Args:
        logits: `(B, classes, h, w)`, resized bilinearly to the target where their size differs.
        target: labels `(B, H, W)`, 255 where a pixel does not count.
        weights: how much each pixel counts; see `pixel_loss_sum`.
    """
    return _mean(*pixel_loss_sum(logits, target, weights))


def presence_loss_sum(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy against the classes that occur in each image, as the sum over images of means over classes.

    Args:
        logits: `(B, classes)`.
        target: labels `(B, H, W)`.
    """
    return presence_loss(logits, target) * logits.shape[0]


def presence_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy against the classes that occur in each image, as the mean over images and classes.

    Args:
        logits: `(B, classes)`.
        target: labels `(B, H, W)`.
    """
    present = torch.stack([(target == label).flatten(1).any(1) for label in range(logits.shape[1])], 1)  # (B, classes)
    return F.binary_cross_entropy_with_logits(logits.float(), present.float())


def total_loss(
    logits: Tensor,
    auxiliary: Mapping[str, tuple[Tensor, Auxiliary]],
    target: Tensor,
    weights: PixelWeights = EQUAL,
    whole: BatchCount | None = None,
) -> Tensor:
    """`pixel_loss(logits) + sum_a weight_a * loss_a(logits_a)` over the extra losses of operator and auxiliary head.

    Args:
        logits: `(B, classes, H, W)`.
        auxiliary: logits of each extra loss, with its kind and weight.
        target: labels `(B, H, W)`, 255 where a pixel does not count.
        weights: how much each pixel counts, in every loss over pixels.
        whole: counts of the whole batch, where this is a part of it: the losses of all parts then add up to the loss of
            the whole (but for what OHEM keeps, which it chooses in each part).
    """
    loss = _pixel(logits, target, weights, whole)
    for extra, declared in auxiliary.values():
        if declared.target == "pixel":
            loss = loss + declared.weight * _pixel(extra, target, weights, whole)
        else:
            loss = loss + declared.weight * _presence(extra, target, whole)
    return loss


def _pixel(logits: Tensor, target: Tensor, weights: PixelWeights, whole: BatchCount | None) -> Tensor:
    total, count = pixel_loss_sum(logits, target, weights)
    return _mean(total, count if whole is None else whole.pixels)


def _presence(logits: Tensor, target: Tensor, whole: BatchCount | None) -> Tensor:
    return presence_loss(logits, target) if whole is None else presence_loss_sum(logits, target) / whole.images
