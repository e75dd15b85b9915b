"""Object context pooling of OCNet and its two arrangements, written out position by position."""

from __future__ import annotations

import math

import torch
from oracle_layers import (
    Map,
    Parameters,
    affine,
    concatenate,
    conv_norm_relu,
    each,
    normalise,
    resize,
)
from torch import Tensor


def pool(x: Map, subsample: int) -> Map:
    """Maxima over cells; a shorter side is one cell, a remainder is left out."""
    tall, wide = min(subsample, len(x)), min(subsample, len(x[0]))

    def cell(row: int, column: int) -> Tensor:
        members = [x[row * tall + i][column * wide + j] for i in range(tall) for j in range(wide)]
        return torch.stack(members).amax(0)

    return [[cell(row, column) for column in range(len(x[0]) // wide)] for row in range(len(x) // tall)]


def project(x: Map, parameters: Parameters, prefix: str) -> Map:
    """One projection under `prefix`, or two under its numbers."""
    if f"{prefix}.conv.weight" in parameters:
        return conv_norm_relu(x, parameters, prefix)
    return conv_norm_relu(conv_norm_relu(x, parameters, f"{prefix}.0"), parameters, f"{prefix}.1")


def pooling(x: Map, parameters: Parameters, *, share: bool, subsample: int) -> Map:
    """`y_i = W_o sum_j softmax_j(q_i . k_j / sqrt(d)) (W_v x_j + b_v) + b_o` on cells, resized to the map."""
    pooled = pool(x, subsample)
    keys = project(pooled, parameters, "context.key")
    queries = keys if share else project(pooled, parameters, "context.query")
    values = affine(pooled, parameters, "context.value")
    pairs = [pair for rows in zip(keys, values, strict=True) for pair in zip(*rows, strict=True)]

    def read(query: Tensor) -> Tensor:
        kernels = [torch.exp((query * key).sum() / math.sqrt(len(query))) for key, _ in pairs]
        terms = [kernel / sum(kernels) * value for kernel, (_, value) in zip(kernels, pairs, strict=True)]
        return torch.stack(terms).sum(0)

    out = affine(each(read, queries), parameters, "context.out")
    return resize(out, len(x), len(x[0]), align_corners=True)


def base(x: Map, parameters: Parameters, *, share: bool = True, subsample: int = 1) -> Map:
    """Base-OC, with a 3x3 convolution in front where it has parameters."""
    if "front.conv.weight" in parameters:
        x = conv_norm_relu(x, parameters, "front")
    context = pooling(x, parameters, share=share, subsample=subsample)
    return conv_norm_relu(concatenate(context, x), parameters, "fuse")


def pyramid(
    x: Map, parameters: Parameters, *, dilations: tuple[int, ...], share: bool = False, subsample: int = 2
) -> Map:
    """ASP-OC."""
    front = conv_norm_relu(x, parameters, "front")
    normal = normalise(pooling(front, parameters, share=share, subsample=subsample), parameters, "norm")
    context = [[torch.where(value > 0, value, value / 100) for value in row] for row in normal]
    branches = [
        conv_norm_relu(x, parameters, f"branches.{index}", dilation=dilation)
        for index, dilation in enumerate((1, *dilations))
    ]
    return conv_norm_relu(concatenate(context, *branches), parameters, "fuse")
