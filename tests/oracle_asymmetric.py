"""Asymmetric non-local attention, written out pixel by pixel and anchor by anchor."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pool(x: Tensor, bins: tuple[int, ...]) -> list[Tensor]:
    """Averages `(C,)` of `(C, H, W)` over the cells of each grid, row by row; cells cover the map and may overlap."""
    _, height, width = x.shape
    anchors = []
    for size in bins:
        for i in range(size):
            for j in range(size):
                rows = slice(i * height // size, math.ceil((i + 1) * height / size))
                columns = slice(j * width // size, math.ceil((j + 1) * width / size))
                cell = x[:, rows, columns]
                anchors.append(cell.sum((1, 2)) / cell[0].numel())
    return anchors


def read(
    high: Tensor, low: Tensor, parameters: dict[str, Tensor], prefix: str, bins: tuple[int, ...], *, scale: bool = True
) -> Tensor:
    """What the pixels of `high` `(C, H, W)` read from `low` `(L, H', W')`, before fusion."""
    shared = f"{prefix}.query.conv.weight" not in parameters
    queries = _project(high, parameters, f"{prefix}.{'key' if shared else 'query'}")
    keys = pool(_project(low, parameters, f"{prefix}.key"), bins)
    values = pool(_affine(low, parameters, f"{prefix}.value"), bins)
    out = torch.zeros(len(values[0]), *high.shape[1:], dtype=high.dtype)
    columns = []
    for query in queries.flatten(1).unbind(1):
        divisor = math.sqrt(len(query)) if scale else 1.0
        kernels = [torch.exp((query * key).sum() / divisor) for key in keys]
        columns.append(sum(kernel / sum(kernels) * value for kernel, value in zip(kernels, values, strict=True)))
    out = torch.stack(columns, 1).reshape(out.shape)
    return _affine(out, parameters, f"{prefix}.out")


def pyramid(x: Tensor, parameters: dict[str, Tensor], bins: tuple[int, ...], *, scale: bool = True) -> Tensor:
    """APNB in evaluation on `(B, C, H, W)`."""
    images = [torch.cat((read(image, image, parameters, "stage", bins, scale=scale), image)) for image in x]
    return torch.stack([_project(image, parameters, "fuse") for image in images])


def fusion(
    high: Tensor, low: Tensor, parameters: dict[str, Tensor], bins: tuple[int, ...], *, scale: bool = True
) -> Tensor:
    """AFNB in evaluation on `(B, C, H, W)` and `(B, L, H', W')`; without the last ReLU."""
    images = [
        torch.cat((read(above, below, parameters, "stage", bins, scale=scale), above))
        for above, below in zip(high, low, strict=True)
    ]
    return torch.stack([_normalised(image, parameters, "fuse") for image in images])


def _affine(x: Tensor, parameters: dict[str, Tensor], name: str) -> Tensor:
    weight = parameters[f"{name}.weight"][:, :, 0, 0]
    mapped = [weight @ pixel + parameters[f"{name}.bias"] for pixel in x.flatten(1).unbind(1)]
    return torch.stack(mapped, 1).reshape(-1, *x.shape[1:])


def _normalised(x: Tensor, parameters: dict[str, Tensor], name: str) -> Tensor:
    weight = parameters[f"{name}.conv.weight"][:, :, 0, 0]
    mean, variance, gain, shift = (
        parameters[f"{name}.norm.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
    )
    mapped = [gain * (weight @ pixel - mean) / (variance + 1e-5).sqrt() + shift for pixel in x.flatten(1).unbind(1)]
    return torch.stack(mapped, 1).reshape(-1, *x.shape[1:])


def _project(x: Tensor, parameters: dict[str, Tensor], name: str) -> Tensor:
    return _normalised(x, parameters, name).clamp(min=0)
