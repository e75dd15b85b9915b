"""What windows and neighbourhoods share, written out position by position on rows of pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from oracle_layers import Map, Parameters, each
from torch import Tensor


def layer_norm(x: Map, parameters: Parameters, prefix: str) -> Map:
    """Each pixel less its mean, over its deviation."""
    weight, bias = parameters[f"{prefix}.weight"], parameters[f"{prefix}.bias"]

    def normalise(pixel: Tensor) -> Tensor:
        mean = pixel.sum() / len(pixel)
        variance = ((pixel - mean) ** 2).sum() / len(pixel)
        return weight * (pixel - mean) / (variance + 1e-5).sqrt() + bias

    return each(normalise, x)


def linear(x: Map, parameters: Parameters, prefix: str) -> Map:
    """`W x_i + b` at each position."""
    return each(lambda pixel: parameters[f"{prefix}.weight"] @ pixel + parameters[f"{prefix}.bias"], x)


def project(x: Map, parameters: Parameters, prefix: str) -> tuple[Map, Map, Map]:
    """Queries, keys and values."""
    merged = linear(x, parameters, prefix)
    third = len(x[0][0])
    return tuple(  # type: ignore[return-value]
        each(lambda pixel, start=start: pixel[start : start + third], merged) for start in (0, third, 2 * third)
    )


def read(
    query: Tensor, keys: Iterable[Tensor], values: Iterable[Tensor], biases: Iterable[Tensor], num_heads: int
) -> Tensor:
    """What one pixel reads: for each head the mean of the values under its own weights; a bias has one entry a head."""
    width = len(query) // num_heads
    keys, values, biases = list(keys), list(values), list(biases)
    heads = []
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        kernels = [
            torch.exp((query[part] * key[part]).sum() / math.sqrt(width) + bias[head])
            for key, bias in zip(keys, biases, strict=True)
        ]
        total = sum(kernels)
        heads.append(sum(kernel / total * value[part] for kernel, value in zip(kernels, values, strict=True)))
    return torch.cat(heads)


def add(x: Map, y: Map) -> Map:
    return each(lambda a, b: a + b, x, y)
