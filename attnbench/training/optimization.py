"""Optimiser, schedule and one step of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from attnbench.config import Recipe
from attnbench.errors import UsageError


def poly_factor(iteration: int, iterations: int, power: float) -> float:
    """Factor of the learning rate at `iteration` of `iterations`: `(1 - t/T)^power`.

    Example:
        >>> poly_factor(75, 100, 0.5)
        0.5
    """
    return float((1 - iteration / iterations) ** power)


def learning_rate(initial: float, iteration: int, recipe: Recipe) -> float:
    """Learning rate at `iteration` of a group that starts with `initial`.

    Equation: `w_t (m + (initial - m) (1 - t/T)^power)` with the minimal learning rate `m`, and `w_t` rising linearly
    from `warmup_ratio` to 1 over the `warmup_iterations`.

    Source:
        The `poly` policy and the linear warm-up of mmcv, which mmsegmentation's schedules are written for.

    Example:
        >>> recipe = Recipe(iterations=100, power=1.0, min_learning_rate=0.1, warmup_iterations=10, warmup_ratio=0.5)
        >>> [round(learning_rate(1.1, t, recipe), 3) for t in (0, 10, 50, 99)]
        [0.55, 1.0, 0.6, 0.11]
    """
    least = recipe.min_learning_rate
    rate = least + (initial - least) * poly_factor(iteration, recipe.iterations, recipe.power)
    if iteration >= recipe.warmup_iterations:
        return rate
    return rate * (recipe.warmup_ratio + (1 - recipe.warmup_ratio) * iteration / recipe.warmup_iterations)


def set_learning_rates(optimizer: torch.optim.Optimizer, iteration: int, recipe: Recipe) -> None:
    """Sets the learning rate of every group for `iteration`; see `learning_rate`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(group["initial_lr"], iteration, recipe)


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Optimiser over the parameters that need a gradient: the backbone's, and all others at the head's learning rate.

    Where the recipe tells biases or decaying weights apart, they form groups of their own.

    Raises:
        UsageError: if there is nothing to train.
    """
    groups = _groups(model, recipe)
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            groups,
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        if recipe.momentum:
            # left to itself, a first step that overflows leaves whatever lies in memory as momentum
            for parameter in (p for group in groups for p in group["params"]):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    backbone = getattr(model, "backbone", None)
    inner = {id(p) for p in backbone.parameters()} if isinstance(backbone, nn.Module) else set()
    biases, weights = _biases(model), _weights(model)
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = id(parameter)
            factor = recipe.bias_learning_rate_factor if key in biases else 1.0
            decay = recipe.weight_decay if key in weights or not recipe.decay_weights_only else 0.0
            groups.setdefault((key not in inner, factor, decay), []).append(parameter)
    if not groups:
        raise UsageError("model: expected at least one parameter to train, got none")
    rates = (recipe.learning_rate, recipe.learning_rate * recipe.head_learning_rate_factor)
    return [
        {"params": parameters, "lr": rates[outer] * factor, "initial_lr": rates[outer] * factor, "weight_decay": decay}
        for (outer, factor, decay), parameters in sorted(groups.items(), key=lambda item: item[0][0])
    ]


def _biases(model: nn.Module) -> set[int]:
    """What is added to each channel: `bias` of any layer."""
    return {id(p) for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"}


def _weights(model: nn.Module) -> set[int]:
    """Weights of convolutions and linear layers."""
    return {id(module.weight) for module in model.modules() if isinstance(module, _ConvNd | nn.Linear)}


def set_batch_norm_momentum(model: nn.Module, momentum: float | None) -> None:
    """Sets the momentum of every batch normalisation of `model`; none leaves what they have.

    Example:
        >>> norm = nn.BatchNorm2d(3)
        >>> set_batch_norm_momentum(norm, 3e-4)
        >>> norm.momentum
        0.0003
    """
    if momentum is not None:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = momentum


def optimizer_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    clip_gradient_norm: float,
) -> None:
    """Clipping, and one step of the optimiser with the gradients that are there.

    Args:
        model: whose gradients are clipped.
        optimizer: its optimiser.
        scaler: scaled the loss where gradients are float16.
        clip_gradient_norm: largest norm of the gradient (0 does not clip).
    """
    if clip_gradient_norm > 0:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip_gradient_norm)
    scaler.step(optimizer)
    scaler.update()
