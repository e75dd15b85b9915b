"""The training loop."""

from __future__ import annotations

import math
import time

import torch
from torch import nn

from attnbench.config import Recipe
from attnbench.data.base import SegmentationDataset
from attnbench.data.loading import training_batches
from attnbench.training.balance import pixel_weights
from attnbench.training.context import autocast, repeatable, training_mode
from attnbench.training.losses import total_loss
from attnbench.training.optimization import (
    build_optimizer,
    optimizer_step,
    set_batch_norm_momentum,
    set_learning_rates,
)
from attnbench.training.watching import Step, Watcher, timed


def fit(
    model: nn.Module,
    dataset: SegmentationDataset,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device | str,
    freeze_backbone: bool = False,
    progress: Watcher | None = None,
    num_workers: int = 0,
) -> list[float]:
    """Trains `model` in place.

    Two runs with equal weights, data, recipe and seed end with equal weights, bit for bit, on one machine and CPU; on
    CUDA operations without a deterministic algorithm warn.

    Args:
        model: a segmentor: `forward_with_auxiliary(images) -> (logits, {name: (logits, Auxiliary)})`, and `backbone`.
        dataset: images and targets.
        recipe: the training recipe.
        seed: seed of order, augmentation and of what the model draws, such as dropout.
        device: where to train.
        freeze_backbone: whether the backbone keeps its weights and statistics.
        progress: called after each iteration with what it was like.
        num_workers: processes that load; the result does not depend on it.

    Returns:
        The loss of each iteration.

    Raises:
        UsageError: if dataset, recipe and device do not fit one another.
        FloatingPointError: if a loss is not finite; the message names the iteration.
    """
    device = torch.device(device)
    weights = pixel_weights(dataset, recipe, device)
    batches = training_batches(dataset, recipe, seed=seed, num_workers=num_workers, pin_memory=device.type == "cuda")
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    losses: list[float] = []
    with repeatable(seed, device), training_mode(model, freeze_backbone=freeze_backbone):
        set_batch_norm_momentum(model, recipe.batch_norm_momentum)
        optimizer = build_optimizer(model, recipe)
        scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "float16")
        began = time.perf_counter()
        for iteration, ((images, target), waited) in enumerate(timed(batches)):
            set_learning_rates(optimizer, iteration, recipe)
            images = images.to(device, memory_format=layout, non_blocking=True)
            target = target.to(device, non_blocking=True)
            with autocast(device, recipe.amp):
                logits, auxiliary = model.forward_with_auxiliary(images)  # type: ignore[operator]
                loss = total_loss(logits, auxiliary, target, weights)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"fit: expected a finite loss, got {value} in iteration {iteration}")
            optimizer_step(model, optimizer, scaler, loss, recipe.clip_gradient_norm)
            losses.append(value)
            if progress is not None:
                rate = optimizer.param_groups[0]["lr"]
                seconds = time.perf_counter() - began
                progress(Step(iteration + 1, recipe.iterations, value, rate, len(images), waited, seconds))
            began = time.perf_counter()
    return losses
