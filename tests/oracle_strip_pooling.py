"""Strip pooling and mixed pooling, written out line by line and position by position."""

from __future__ import annotations

import torch
from oracle_gates import line_means, scale, sigmoid
from oracle_layers import (
    Map,
    Parameters,
    affine,
    concatenate,
    conv_norm_relu,
    convolve,
    each,
    normalise,
    pool,
    relu,
    resize,
)
from torch import Tensor


def strip_sum(x: Map, parameters: Parameters, prefix: str) -> Map:
    """Convolved and normalised averages of the row and of the column of each pixel."""
    rows, columns = line_means(x)
    rows = convolve_line(rows, parameters, f"{prefix}.rows")
    columns = convolve_line(columns, parameters, f"{prefix}.columns")
    return [[row + column for column in columns] for row in rows]


def convolve_line(line: list[Tensor], parameters: Parameters, prefix: str) -> list[Tensor]:
    weight = parameters[f"{prefix}.conv.weight"].flatten(2)
    bias = parameters.get(f"{prefix}.conv.bias", torch.zeros(len(weight), dtype=weight.dtype))
    convolved = []
    for i in range(len(line)):
        taps = [weight[:, :, t] @ line[i + t - 1] for t in range(3) if 0 <= i + t - 1 < len(line)]
        convolved.append(torch.stack(taps).sum(0) + bias)
    return normalise([convolved], parameters, f"{prefix}.norm")[0]


def strip_pooling(x: Map, parameters: Parameters) -> Map:
    energies = affine(relu(strip_sum(x, parameters, "strips")), parameters, "gate")
    return scale(x, each(sigmoid, energies))


def conv_norm(x: Map, parameters: Parameters, prefix: str) -> Map:
    return normalise(convolve(x, parameters[f"{prefix}.conv.weight"]), parameters, f"{prefix}.norm")


def mixed_pooling(x: Map, parameters: Parameters, *, bins: tuple[int, ...], align_corners: bool) -> Map:
    cells = conv_norm_relu(x, parameters, "cell_reduction")
    total = conv_norm(cells, parameters, "cells.local")
    for index, size in enumerate(bins):
        grid = conv_norm(pool(cells, size), parameters, f"cells.grids.{index}")
        total = each(torch.add, total, resize(grid, len(x), len(x[0]), align_corners=align_corners))
    strips = strip_sum(conv_norm_relu(x, parameters, "strip_reduction"), parameters, "strips")
    fused = concatenate(
        conv_norm_relu(relu(total), parameters, "cell_fusion"),
        conv_norm_relu(relu(strips), parameters, "strip_fusion"),
    )
    return relu(each(torch.add, x, conv_norm(fused, parameters, "expand")))
