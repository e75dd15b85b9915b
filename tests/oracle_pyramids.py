"""Adaptive, dynamic and atrous pyramids from their equations, position by position."""

from __future__ import annotations

import torch
from oracle_layers import (
    Map,
    Parameters,
    affine,
    concatenate,
    conv_norm_relu,
    each,
    mean,
    normalise,
    pool,
    relu,
    separable,
)
from torch import Tensor


def adaptive_scale(x: Map, parameters: Parameters, prefix: str, scale: int, *, fusion: bool) -> Map:
    """`z_i = v(ReLU(w(sum_k a_ik r_k) + p_i))` with `a_i = sigmoid(W (p_i + u(mean_j p_j)) + b)`."""
    pixels = conv_norm_relu(x, parameters, f"{prefix}.pixel")
    regions = conv_norm_relu(pool(x, scale), parameters, f"{prefix}.region")
    flat = [region for row in regions for region in row]
    whole = conv_norm_relu([[mean(pixels)]], parameters, f"{prefix}.whole")[0][0]
    logits = affine(each(lambda pixel: pixel + whole, pixels), parameters, f"{prefix}.affinity")

    def read(logit: Tensor) -> Tensor:
        return torch.stack([region / (1 + torch.exp(-value)) for value, region in zip(logit, flat, strict=True)]).sum(0)

    residual = conv_norm_relu(each(read, logits), parameters, f"{prefix}.residual")
    merged = relu(each(torch.add, residual, pixels))
    return conv_norm_relu(merged, parameters, f"{prefix}.fusion") if fusion else merged


def adaptive(x: Map, parameters: Parameters, *, scales: tuple[int, ...], fusion: bool = True) -> Map:
    """The block of APCNet."""
    context = [adaptive_scale(x, parameters, f"scales.{i}", s, fusion=fusion) for i, s in enumerate(scales)]
    return conv_norm_relu(concatenate(x, *context), parameters, "fuse")


def dynamic_size(x: Map, parameters: Parameters, prefix: str, size: int, *, fusion: bool) -> Map:
    """`z = v(ReLU(BN(g(x) * w)))`, where tap `(i, j)` of the filter `w` is cell `(i, j)` of the pooled map."""
    filters = affine(pool(x, size), parameters, f"{prefix}.generate")
    features = conv_norm_relu(x, parameters, f"{prefix}.reduce")
    height, width = len(x), len(x[0])

    def at(row: int, column: int) -> Tensor:
        total = torch.zeros_like(features[0][0])
        for i in range(size):
            for j in range(size):
                y, z = row + i - size // 2, column + j - size // 2
                if 0 <= y < height and 0 <= z < width:
                    total = total + filters[i][j] * features[y][z]
        return total

    filtered = [[at(row, column) for column in range(width)] for row in range(height)]
    z = relu(normalise(filtered, parameters, f"{prefix}.norm"))
    return conv_norm_relu(z, parameters, f"{prefix}.fusion") if fusion else z


def dynamic(x: Map, parameters: Parameters, *, sizes: tuple[int, ...], fusion: bool = False) -> Map:
    """The block of DMNet."""
    context = [dynamic_size(x, parameters, f"sizes.{i}", k, fusion=fusion) for i, k in enumerate(sizes)]
    return conv_norm_relu(concatenate(x, *context), parameters, "fuse")


def atrous(x: Map, parameters: Parameters, *, dilations: tuple[int, ...], depthwise: bool = False) -> Map:
    """The block of DeepLabV3, or of DeepLabV3+ with its depthwise separable convolutions."""
    whole = conv_norm_relu([[mean(x)]], parameters, "image")[0][0]
    parts = [each(lambda _: whole, x)]
    for index, dilation in enumerate(dilations):
        split = depthwise and dilation > 1
        parts.append((separable if split else conv_norm_relu)(x, parameters, f"branches.{index}", dilation=dilation))
    return conv_norm_relu(concatenate(*parts), parameters, "fuse")
