"""Point-wise spatial attention from the paper's equations, position by position."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from oracle_layers import Map, Parameters, affine, concatenate, conv_norm_relu, resize
from torch import Tensor


def read(
    features: Map,
    scores: Map,
    direction: str,
    mask_size: tuple[int, int],
    *,
    compact: bool,
    softmax: bool,
    divisor: float,
) -> Map:
    """`z_t = sum_s w_st x_s / divisor`, each score looked up in the mask of the position that predicted it."""
    height, width = len(features), len(features[0])
    positions = list(itertools.product(range(height), range(width)))
    half = [(side - 1) // 2 for side in mask_size]

    def score(own: tuple[int, int], other: tuple[int, int]) -> Tensor:
        place = other if compact else (other[0] - own[0] + half[0], other[1] - own[1] + half[1])
        if not (0 <= place[0] < mask_size[0] and 0 <= place[1] < mask_size[1]):
            return torch.zeros((), dtype=torch.float64)
        return scores[own[0]][own[1]][place[0] * mask_size[1] + place[1]]

    def at(target: tuple[int, int]) -> Tensor:
        pairs = [(target, source) if direction == "collect" else (source, target) for source in positions]
        weights = [score(*pair) for pair in pairs]
        if softmax:
            powers = [torch.exp(weight) for weight in weights]
            weights = [power / sum(powers) for power in powers]
        total = sum(w * features[row][column] for w, (row, column) in zip(weights, positions, strict=True))
        assert isinstance(total, Tensor)
        return total / divisor

    return [[at((row, column)) for column in range(width)] for row in range(height)]


def block(
    x: Map,
    parameters: Parameters,
    *,
    psa_type: str,
    mask_size: tuple[int, int],
    shrink_factor: int = 2,
    compact: bool = False,
    softmax: bool = True,
    divisor: float = 1.0,
    proj_padding: int = 0,
    align_corners: bool = False,
) -> Map:
    """The block, with the sizes of mmsegmentation and the authors' 1x1 projection."""
    height, width = len(x), len(x[0])
    rows, columns, aligned = height, width, align_corners
    if shrink_factor > 1:
        aligned = height % shrink_factor != 0 and width % shrink_factor != 0
        extra = 1 if aligned else 0
        rows, columns = ((side - extra) // shrink_factor + extra for side in (height, width))
    directions = ["collect", "distribute"] if psa_type == "bi-direction" else [psa_type]
    parts = []
    for direction in directions:
        prefix = f"branches.{direction}"
        features = conv_norm_relu(x, parameters, f"{prefix}.reduce")
        if shrink_factor > 1:
            features = resize(features, rows, columns, align_corners=aligned)
        scores = affine(conv_norm_relu(features, parameters, f"{prefix}.adapt"), parameters, f"{prefix}.score")
        options: dict[str, Any] = {"compact": compact, "softmax": softmax, "divisor": divisor}
        parts.append(read(features, scores, direction, mask_size, **options))
    context = pad(concatenate(*parts), proj_padding)
    context = conv_norm_relu(context, parameters, "proj")
    context = resize(context, height, width, align_corners=aligned)
    return conv_norm_relu(concatenate(x, context), parameters, "fuse")


def pad(x: Map, width: int) -> Map:
    """`x` with `width` rows and columns of zeros on each side."""
    zero = torch.zeros_like(x[0][0])
    sides = [zero] * width
    empty = [[zero] * (len(x[0]) + 2 * width) for _ in range(width)]
    return [*empty, *([*sides, *row, *sides] for row in x), *empty]
