"""Optimiser, schedule and one step of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnbench.config import Recipe
from attnbench.errors import UsageError


def poly_factor(iteration: int, iterations: int, power: float) -> float:
    """Factor of the learning rate at `iteration` of `iterations`: `(1 - t/T)^power`.

    Example:
        >>> poly_factor(75, 100, 0.5)
        0.5
    """
    return float((1 - iteration / iterations) ** power)


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


def optimizer_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loss: Tensor,
    clip_gradient_norm: float,
) -> None:
    """Backward pass, clipping, and one step of the optimiser.

    Args:
        model: whose gradients are clipped.
        optimizer: its optimiser.
        scaler: scales the loss where gradients are float16.
        loss: what is minimised.
        clip_gradient_norm: largest norm of the gradient (0 does not clip).
    """
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    if clip_gradient_norm > 0:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip_gradient_norm)
    scaler.step(optimizer)
    scaler.update()
