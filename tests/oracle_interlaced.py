"""Interlaced sparse self-attention, written out pixel by pixel on a padded map."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Pixels = dict[tuple[int, int], Tensor]


def block(x: Tensor, parameters: dict[str, Tensor], window: tuple[int, int]) -> Tensor:
    """The block in evaluation on `(B, C, H, W)`."""
    return torch.stack([_image(image, parameters, window) for image in x])


def _image(x: Tensor, parameters: dict[str, Tensor], window: tuple[int, int]) -> Tensor:
    channels, height, width = x.shape
    rows, columns = (math.ceil(extent / size) for extent, size in zip((height, width), window, strict=True))
    top, left = (rows * window[0] - height) // 2, (columns * window[1] - width) // 2
    places = [(i, j) for i in range(rows * window[0]) for j in range(columns * window[1])]
    padded = {place: torch.zeros(channels, dtype=x.dtype) for place in places}
    for i in range(height):
        for j in range(width):
            padded[i + top, j + left] = x[:, i, j]
    same_place = {place: (place[0] % window[0], place[1] % window[1]) for place in padded}
    same_window = {place: (place[0] // window[0], place[1] // window[1]) for place in padded}
    distant = _relation(padded, same_place, parameters, "long_range")
    read = _relation(distant, same_window, parameters, "short_range")
    outputs = [
        _project(torch.cat((read[i + top, j + left], x[:, i, j])), parameters, "fuse")
        for i in range(height)
        for j in range(width)
    ]
    return torch.stack(outputs, 1).reshape(x.shape)


def _relation(
    pixels: Pixels, groups: dict[tuple[int, int], tuple[int, int]], parameters: dict[str, Tensor], prefix: str
) -> Pixels:
    """Each pixel reads the pixels of its group."""
    queries, keys = (
        {
            place: _project(_project(pixel, parameters, f"{prefix}.{name}.0"), parameters, f"{prefix}.{name}.1")
            for place, pixel in pixels.items()
        }
        for name in ("query", "key")
    )
    weight, bias = parameters[f"{prefix}.value.weight"][:, :, 0, 0], parameters.get(f"{prefix}.value.bias", 0.0)
    values = {place: weight @ pixel + bias for place, pixel in pixels.items()}
    out = {}
    for place, query in queries.items():
        members = [other for other in pixels if groups[other] == groups[place]]
        kernels = [torch.exp((query * keys[other]).sum() / math.sqrt(len(query))) for other in members]
        read = sum(kernel / sum(kernels) * values[other] for kernel, other in zip(kernels, members, strict=True))
        out[place] = _project(read, parameters, f"{prefix}.out")
    return out


def _project(pixel: Tensor, parameters: dict[str, Tensor], name: str) -> Tensor:
    mapped = parameters[f"{name}.conv.weight"][:, :, 0, 0] @ pixel
    mean, variance, gain, shift = (
        parameters[f"{name}.norm.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (gain * (mapped - mean) / (variance + 1e-5).sqrt() + shift).clamp(min=0)
