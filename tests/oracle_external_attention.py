"""External attention from its equations, pixel by pixel and slot by slot."""

from __future__ import annotations

import torch
from oracle_layers import Map, Parameters, affine, each, normalise, relu
from torch import Tensor

EPSILON = 1e-9


def weights(pixels: list[Tensor], key: Tensor) -> list[list[Tensor]]:
    """Double normalisation: of each slot over the pixels, then of each pixel over the slots."""
    powers = [[torch.exp(slot @ pixel) for slot in key] for pixel in pixels]
    totals = [sum(row[index] for row in powers) for index in range(len(key))]
    first = [[power / total for power, total in zip(row, totals, strict=True)] for row in powers]
    return [[entry / (EPSILON + sum(row)) for entry in row] for row in first]


def block(x: Map, parameters: Parameters) -> Map:
    """The block of EANet in evaluation; without a second memory, the first is read."""
    key = parameters["core.key"]
    value = parameters.get("core.value", key.t())
    pixels = [pixel for row in affine(x, parameters, "conv_in") for pixel in row]
    read = [
        torch.stack([entry * slot for entry, slot in zip(row, value.unbind(1), strict=True)]).sum(0)
        for row in weights(pixels, key)
    ]
    width = len(x[0])
    rows = [read[start : start + width] for start in range(0, len(read), width)]
    return relu(each(torch.add, x, normalise(affine(rows, parameters, "conv_out"), parameters, "norm")))
