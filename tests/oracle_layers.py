"""Layers written out position by position, on one image as rows of pixels; autograd runs through them."""

from __future__ import annotations

from collections.abc import Callable

import oracle_pyramid_pooling
import torch
from torch import Tensor

Map = list[list[Tensor]]
Parameters = dict[str, Tensor]


def to_map(image: Tensor) -> Map:
    """`(C, H, W)` as rows of pixels `(C,)`."""
    return [[image[:, row, column] for column in range(image.shape[2])] for row in range(image.shape[1])]


def to_image(x: Map) -> Tensor:
    """Rows of pixels as `(C, H, W)`."""
    return torch.stack([torch.stack(row, 1) for row in x], 1)


def each(function: Callable[..., Tensor], *maps: Map) -> Map:
    """`function` of the pixels that lie above each other."""
    return [[function(*pixels) for pixels in zip(*rows, strict=True)] for rows in zip(*maps, strict=True)]


def affine(x: Map, parameters: Parameters, prefix: str) -> Map:
    """`W x_i + b` at each position, without `b` where there is none."""
    weight = parameters[f"{prefix}.weight"][:, :, 0, 0]
    bias = parameters.get(f"{prefix}.bias", torch.zeros(len(weight), dtype=weight.dtype))
    return each(lambda pixel: weight @ pixel + bias, x)


def convolve(x: Map, weight: Tensor, *, dilation: int = 1) -> Map:
    """Sum over the taps of a kernel, zero outside the map; depthwise where the kernel has one input channel."""
    height, width, side = len(x), len(x[0]), weight.shape[-1]
    depthwise = weight.shape[1] == 1 and len(x[0][0]) > 1

    def at(row: int, column: int) -> Tensor:
        total = torch.zeros(len(weight), dtype=weight.dtype)
        for i in range(side):
            for j in range(side):
                y, z = row + (i - side // 2) * dilation, column + (j - side // 2) * dilation
                if 0 <= y < height and 0 <= z < width:
                    tap = weight[:, :, i, j]
                    total = total + (tap[:, 0] * x[y][z] if depthwise else tap @ x[y][z])
        return total

    return [[at(row, column) for column in range(width)] for row in range(height)]


def normalise(x: Map, parameters: Parameters, prefix: str) -> Map:
    """Batch normalisation in evaluation."""
    mean, variance, gain, shift = (
        parameters[f"{prefix}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return each(lambda pixel: gain * (pixel - mean) / (variance + 1e-5).sqrt() + shift, x)


def relu(x: Map) -> Map:
    return each(lambda pixel: pixel.clamp(min=0), x)


def conv_norm_relu(x: Map, parameters: Parameters, prefix: str, *, dilation: int = 1) -> Map:
    """Convolution, normalisation and ReLU under `prefix`."""
    convolved = convolve(x, parameters[f"{prefix}.conv.weight"], dilation=dilation)
    return relu(normalise(convolved, parameters, f"{prefix}.norm"))


def separable(x: Map, parameters: Parameters, prefix: str, *, dilation: int = 1) -> Map:
    """Depthwise and pointwise convolution under `prefix`."""
    x = conv_norm_relu(x, parameters, f"{prefix}.depthwise", dilation=dilation)
    return conv_norm_relu(x, parameters, f"{prefix}.pointwise")


def mean(x: Map) -> Tensor:
    """Mean of all pixels."""
    return torch.stack([pixel for row in x for pixel in row]).sum(0) / (len(x) * len(x[0]))


def concatenate(*maps: Map) -> Map:
    """Channels one behind the other."""
    return each(lambda *pixels: torch.cat(pixels), *maps)


def pool(x: Map, size: int) -> Map:
    """Averages over `size x size` cells."""
    pooled: Map = oracle_pyramid_pooling.average_grid(x, size)  # type: ignore[arg-type, assignment]
    return pooled


def resize(x: Map, height: int, width: int, *, align_corners: bool) -> Map:
    """Bilinear resize."""
    resized: Map = oracle_pyramid_pooling.resize(x, height, width, align_corners=align_corners)  # type: ignore[arg-type, assignment]
    return resized
