"""What training minimises."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from attnbench.metrics import IGNORE_INDEX
from operators.interface import Auxiliary
from operators.layers import interpolation_matrix


def pixel_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy as the mean over all labelled pixels of the batch, 0 where there is none.

    Args:
        logits: `(B, classes, h, w)`, resized bilinearly to the target where their size differs.
        target: labels `(B, H, W)`, 255 where a pixel does not count.
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
    losses = F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="none")  # (B, H, W)
    return losses.sum() / (target != IGNORE_INDEX).sum().clamp(min=1)


def presence_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy against the classes that occur in each image, as the mean over images and classes.

    Args:
        logits: `(B, classes)`.
        target: labels `(B, H, W)`.
    """
    present = torch.stack([(target == label).flatten(1).any(1) for label in range(logits.shape[1])], 1)  # (B, classes)
    return F.binary_cross_entropy_with_logits(logits.float(), present.float())


_LOSSES = {"pixel": pixel_loss, "presence": presence_loss}


def total_loss(logits: Tensor, auxiliary: Mapping[str, tuple[Tensor, Auxiliary]], target: Tensor) -> Tensor:
    """`pixel_loss(logits) + sum_a weight_a * loss_a(logits_a)` over the extra losses of operator and auxiliary head."""
    loss = pixel_loss(logits, target)
    for extra, declared in auxiliary.values():
        loss = loss + declared.weight * _LOSSES[declared.target](extra, target)
    return loss
