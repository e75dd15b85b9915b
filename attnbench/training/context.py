"""Contexts that training runs in: precision, seeds, and which modules train."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from attnbench.config import Amp
from attnbench.errors import UsageError
from attnbench.training.random_states import random_states, set_random_states


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
def repeatable(seed: int, device: torch.device, *, deterministic: bool = True) -> Iterator[None]:
    """Context with seeded global generators and deterministic algorithms where they exist; all is restored afterwards.

    The generators are those of torch, python and numpy.

    Args:
        seed: of the generators.
        device: where the work is done.
        deterministic: whether deterministic algorithms are asked for; see `Recipe.compile`.


    Operations without a deterministic algorithm (some backward passes on CUDA) warn.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    states = random_states(device)
    try:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        set_random_states(states, device)


@contextmanager
def training_mode(model: nn.Module, *, freeze_backbone: bool, freeze_norms: bool = False) -> Iterator[None]:
    """Context in which `model` trains; a frozen backbone stays in evaluation, so that its statistics stay, too.

    Frozen normalisations normalise by their running statistics, which stay; their scales and offsets train.
    """
    flags = [(module, module.training) for module in model.modules()]
    frozen: list[nn.Parameter] = []
    backbone = getattr(model, "backbone", None)
    if freeze_backbone and not isinstance(backbone, nn.Module):
        raise UsageError(f"freeze_backbone: expected a model with a backbone, got {type(model).__name__}")
    model.train()
    if freeze_norms:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
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
