"""Golden tensors of mmsegmentation, and its layers written out on a state dict."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

PARITY = Path(os.environ.get("ATTNBENCH_PARITY", Path(__file__).parents[1] / "../shared/parity"))


def load(name: str) -> dict[str, Any]:
    """The golden head called `name`; skips the test where the files are absent."""
    path = PARITY / f"{name}.pt"
    if not path.is_file():
        pytest.skip(f"golden tensors absent: set ATTNBENCH_PARITY to the folder that holds {name}.pt")
    golden: dict[str, Any] = torch.load(path, weights_only=True)
    return golden


def conv_bn_relu(x: Tensor, state: dict[str, Tensor], prefix: str) -> Tensor:
    """Convolution that keeps the size, batch normalisation, ReLU, from the parameters under `prefix`."""
    weight = state[f"{prefix}.conv.weight"]
    x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    mean, variance, gain, shift = (
        state[f"{prefix}.bn.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return F.relu(F.batch_norm(x, mean, variance, gain, shift))


def classify(x: Tensor, state: dict[str, Tensor], prefix: str = "conv_seg") -> Tensor:
    """The 1x1 classifier under `prefix`."""
    return F.conv2d(x, state[f"{prefix}.weight"], state[f"{prefix}.bias"])
