"""Spatial-reduction attention, written out cell by cell and pixel by pixel."""

from __future__ import annotations

import oracle_heads as heads
import torch
from oracle_layers import Map, Parameters


def cells(tokens: heads.Tokens, x: Map, parameters: Parameters, reduction: int) -> heads.Tokens:
    """Cells row by row: each a weighted sum over its pixels, where the map has them, and normalised."""
    if reduction == 1:
        return tokens
    pixels, weight = heads.map_of(tokens, x), parameters["reduce.0.weight"]
    height, width = len(pixels), len(pixels[0])
    reduced = []
    for top in range(0, height, reduction):
        for left in range(0, width, reduction):
            total = parameters["reduce.0.bias"]
            for i in range(top, min(top + reduction, height)):
                for j in range(left, min(left + reduction, width)):
                    total = total + weight[:, :, i - top, j - left] @ pixels[i][j]
            reduced.append(total)
    return heads.layer_norm(reduced, parameters, "reduce.1", eps=1e-5)


def block(x: Map, parameters: Parameters, num_heads: int, reduction: int) -> Map:
    """The sublayer with its residual."""
    tokens = heads.layer_norm(heads.tokens_of(x), parameters, "norm", eps=1e-6)
    queries = heads.linear(tokens, parameters, "query")
    both = heads.linear(cells(tokens, x, parameters, reduction), parameters, "key_value")
    keys, values = heads.part(both, 0, 2), heads.part(both, 1, 2)
    read = []
    for head in range(num_heads):
        query, key, value = (heads.part(tokens, head, num_heads) for tokens in (queries, keys, values))
        read.append(heads.weighted(heads.softmax_rows(query, key), value))
    return heads.add(x, heads.linear(heads.concatenate(read), parameters, "out"))


def spread(weights: torch.Tensor, height: int, width: int, reduction: int) -> torch.Tensor:
    """Weights `(M,)` of cells as `(H, W)`: each cell's pixels share its weight."""
    across = (width + reduction - 1) // reduction
    cell = [[(i // reduction) * across + j // reduction for j in range(width)] for i in range(height)]
    flat = [index for row in cell for index in row]
    shares = torch.stack([weights[index] / flat.count(index) for index in flat])
    return shares.reshape(height, width)
