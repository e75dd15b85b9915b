"""Training: one recipe for every operator, bit for bit repeatable on one machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnbench.config import Amp, Recipe
from attnbench.data.base import SegmentationDataset
from attnbench.data.loading import training_batches
from attnbench.errors import UsageError
from attnbench.metrics import IGNORE_INDEX
from operators.interface import Auxiliary
from operators.layers import interpolation_matrix

Progress = Callable[[int, int, float], None]
"""Called after each iteration with the iterations done, their total, and the loss."""


def poly_factor(iteration: int, iterations: int, power: float) -> float:
    """Factor of the learning rate at `iteration` of `iterations`: `(1 - t/T)^power`.

    Example:
        >>> poly_factor(75, 100, 0.5)
        0.5
    """
    return float((1 - iteration / iterations) ** power)


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


def autocast(device: torch.device, amp: Amp) -> torch.autocast:
    """Context in which the forward pass runs in the precision `amp`.

    Raises:
        UsageError: for float16 on a device other than CUDA, where small gradients would vanish.
    """
    if amp == "float16" and device.type != "cuda":
        raise UsageError(f"amp: expected 'off' or 'bfloat16' on device {device.type!r}, got 'float16'")
    dtype = torch.float16 if amp == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=amp != "off")


@contextmanager
def repeatable(seed: int, device: torch.device) -> Iterator[None]:
    """Context with seeded global generators and deterministic algorithms where they exist; all is restored afterwards.

    Operations without a deterministic algorithm (some backward passes on CUDA) warn.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Optimiser over the parameters that need a gradient: the backbone's, and all others at the head's learning rate.

    Raises:
        UsageError: if there is nothing to train.
    """
    backbone = getattr(model, "backbone", None)
    inner = {id(p) for p in backbone.parameters()} if isinstance(backbone, nn.Module) else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise UsageError("model: expected at least one parameter to train, got none")
    head_rate = recipe.learning_rate * recipe.head_learning_rate_factor
    groups = [
        {"params": [p for p in trained if id(p) in inner], "lr": recipe.learning_rate},
        {"params": [p for p in trained if id(p) not in inner], "lr": head_rate},
    ]
    groups = [{**group, "initial_lr": group["lr"]} for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)


@contextmanager
def _training(model: nn.Module, *, freeze_backbone: bool) -> Iterator[None]:
    """Context in which `model` trains; a frozen backbone stays in evaluation, so that its statistics stay, too."""
    flags = [(module, module.training) for module in model.modules()]
    frozen: list[nn.Parameter] = []
    backbone = getattr(model, "backbone", None)
    if freeze_backbone and not isinstance(backbone, nn.Module):
        raise UsageError(f"freeze_backbone: expected a model with a backbone, got {type(model).__name__}")
    model.train()
    if freeze_backbone and isinstance(backbone, nn.Module):
        backbone.eval()
        frozen = [p for p in backbone.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module, training in flags:
            module.training = training


def fit(
    model: nn.Module,
    dataset: SegmentationDataset,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device | str,
    freeze_backbone: bool = False,
    progress: Progress | None = None,
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
        progress: called after each iteration with the iterations done, their total, and the loss.
        num_workers: processes that load; the result does not depend on it.

    Returns:
        The loss of each iteration.

    Raises:
        UsageError: if dataset, recipe and device do not fit one another.
        FloatingPointError: if a loss is not finite; the message names the iteration.
    """
    device = torch.device(device)
    batches = training_batches(dataset, recipe, seed=seed, num_workers=num_workers, pin_memory=device.type == "cuda")
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    losses: list[float] = []
    with repeatable(seed, device), _training(model, freeze_backbone=freeze_backbone):
        optimizer = build_optimizer(model, recipe)
        scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "float16")
        for iteration, (images, target) in enumerate(batches):
            factor = poly_factor(iteration, recipe.iterations, recipe.power)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            images = images.to(device, memory_format=layout, non_blocking=True)
            target = target.to(device, non_blocking=True)
            with autocast(device, recipe.amp):
                logits, auxiliary = model.forward_with_auxiliary(images)  # type: ignore[operator]
                loss = total_loss(logits, auxiliary, target)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"fit: expected a finite loss, got {value} in iteration {iteration}")
            _step(model, optimizer, scaler, loss, recipe.clip_gradient_norm)
            losses.append(value)
            if progress is not None:
                progress(iteration + 1, recipe.iterations, value)
    return losses


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loss: Tensor,
    clip_gradient_norm: float,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    if clip_gradient_norm > 0:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip_gradient_norm)
    scaler.step(optimizer)
    scaler.update()
