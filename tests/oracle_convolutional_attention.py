"""Gates of depthwise convolutions and the block around them, written out position by position."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from oracle_layers import Map, Parameters, affine, each, normalise
from torch import Tensor


def gelu(pixel: Tensor) -> Tensor:
    """`x` times the share of a normal distribution below it."""
    return pixel * 0.5 * (1 + torch.erf(pixel / math.sqrt(2)))


def convolve_each(x: Map, parameters: Parameters, prefix: str, *, dilation: int = 1) -> Map:
    """Each channel by itself with a kernel of any odd sides, zero outside the map, and its bias."""
    weight, bias = parameters[f"{prefix}.weight"][:, 0], parameters[f"{prefix}.bias"]
    height, width, (tall, wide) = len(x), len(x[0]), weight.shape[1:]

    def at(row: int, column: int) -> Tensor:
        total = bias
        for i in range(tall):
            for j in range(wide):
                y, z = row + (i - tall // 2) * dilation, column + (j - wide // 2) * dilation
                if 0 <= y < height and 0 <= z < width:
                    total = total + weight[:, i, j] * x[y][z]
        return total

    return [[at(row, column) for column in range(width)] for row in range(height)]


def large_kernel_gate(x: Map, parameters: Parameters, *, dilation: int) -> Map:
    """Local, distant and across channels."""
    gate = convolve_each(x, parameters, "core.local")
    gate = convolve_each(gate, parameters, "core.distant", dilation=dilation)
    return affine(gate, parameters, "core.mix")


def multi_scale_gate(x: Map, parameters: Parameters, *, strip_sizes: Sequence[int]) -> Map:
    """Local, pairs of strips, their sum with the local one, and across channels."""
    local = convolve_each(x, parameters, "core.local")
    total = local
    for index, _ in enumerate(strip_sizes):
        strip = convolve_each(local, parameters, f"core.strips.{index}.horizontal")
        strip = convolve_each(strip, parameters, f"core.strips.{index}.vertical")
        total = each(lambda a, b: a + b, total, strip)
    return affine(total, parameters, "core.mix")


def block(x: Map, parameters: Parameters, gate: Callable[[Map, Parameters], Map]) -> Map:
    """Normalisation, 1x1 convolution, GELU, gate, 1x1 convolution, and both residuals."""
    normed = normalise(x, parameters, "norm")
    inner = each(gelu, affine(normed, parameters, "enter"))
    gated = each(lambda a, b: a * b, inner, gate(inner, parameters))
    left = affine(gated, parameters, "leave")
    return each(lambda pixel, a, b: pixel + parameters["scale"] * (a + b), x, normed, left)
