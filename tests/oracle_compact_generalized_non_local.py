"""CGNL from the generalised non-local operation: every pair of entries, each an entry of a channel at a position."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from oracle_layers import Map, Parameters
from torch import Tensor

Pair = Callable[[Tensor, Tensor], Tensor]


def dot_product(theta: Tensor, phi: Tensor) -> Tensor:
    return theta * phi


def taylor(theta: Tensor, phi: Tensor, *, order: int, gamma: float) -> Tensor:
    """`exp(-2 gamma) exp(2 gamma theta phi)`, its series cut behind `order`."""
    terms = [(2 * gamma * theta * phi) ** p / math.factorial(p) for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(0)


def gaussian(theta: Tensor, phi: Tensor, *, gamma: float) -> Tensor:
    """`exp(-gamma (theta - phi)^2)` for `theta` and `phi` of size 1."""
    return torch.exp(2 * gamma * (theta * phi - 1))


def attend(
    theta: list[Tensor], phi: list[Tensor], g: list[Tensor], kernel: Pair, *, scale: bool = False
) -> list[Tensor]:
    """`y_i = sum_j f(theta_i, phi_j) g_j` over the entries of one group."""
    divisor = math.sqrt(len(g)) if scale else 1.0
    return [torch.stack([kernel(t, p) * value for p, value in zip(phi, g, strict=True)]).sum() / divisor for t in theta]


def group_norm(pixels: list[Tensor]) -> list[Tensor]:
    """Pixels of one group, all their entries brought to mean 0 and variance 1."""
    entries = torch.cat(pixels)
    mean = entries.sum() / len(entries)
    variance = ((entries - mean) ** 2).sum() / len(entries)
    return [(pixel - mean) / (variance + 1e-5).sqrt() for pixel in pixels]


def block(x: Map, parameters: Parameters, *, kernel: Pair, num_groups: int, scale: bool) -> Map:
    """The whole block."""
    pixels = [pixel for row in x for pixel in row]
    normalised = []
    for group in range(num_groups):
        theta, phi, g = (
            _entries(pixels, parameters[f"{name}.weight"], group, num_groups) for name in ("theta", "phi", "g")
        )
        read = torch.stack(attend(theta, phi, g, kernel, scale=scale)).reshape(len(pixels), -1)
        weight = _part(parameters["conv_out.weight"][:, :, 0, 0], group, num_groups)
        normalised.append(group_norm([weight @ entry for entry in read]))
    gain, shift = parameters["norm.weight"], parameters["norm.bias"]
    outputs = [pixel + gain * torch.cat(parts) + shift for pixel, *parts in zip(pixels, *normalised, strict=True)]
    width = len(x[0])
    return [outputs[start : start + width] for start in range(0, len(outputs), width)]


def _part(weight: Tensor, group: int, num_groups: int) -> Tensor:
    rows = len(weight) // num_groups
    return weight[group * rows : (group + 1) * rows]


def _entries(pixels: list[Tensor], weight: Tensor, group: int, num_groups: int) -> list[Tensor]:
    part = _part(weight[:, :, 0, 0], group, num_groups)
    return [entry for pixel in pixels for entry in part @ pixel]
