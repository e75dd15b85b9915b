"""Linear attention as the paper's quadratic Eq. 4, whose weights are written out for each pair of pixels."""

from __future__ import annotations

import oracle_heads as heads
import torch
from oracle_layers import Map, Parameters
from torch import Tensor


def features(u: Tensor) -> Tensor:
    return torch.stack([value + 1 if value > 0 else torch.exp(value) for value in u])


def weights(x: Map, parameters: Parameters, num_heads: int) -> list[list[list[Tensor]]]:
    """For each head and each pixel, its weights over all pixels."""
    qkv = _projected(x, parameters)
    queries, keys = heads.part(qkv, 0, 3), heads.part(qkv, 1, 3)
    result = []
    for head in range(num_heads):
        reading = [features(query) for query in heads.part(queries, head, num_heads)]
        read = [features(key) for key in heads.part(keys, head, num_heads)]
        similarities = [[(one * other).sum() for other in read] for one in reading]
        result.append([[value / (sum(row) + 1e-6) for value in row] for row in similarities])
    return result


def block(x: Map, parameters: Parameters, num_heads: int) -> Map:
    """The sublayer with its residual."""
    values = heads.part(_projected(x, parameters), 2, 3)
    read = [
        heads.weighted(rows, heads.part(values, head, num_heads))
        for head, rows in enumerate(weights(x, parameters, num_heads))
    ]
    return heads.add(x, heads.linear(heads.concatenate(read), parameters, "out"))


def _projected(x: Map, parameters: Parameters) -> heads.Tokens:
    normalised = heads.layer_norm(heads.tokens_of(x), parameters, "norm", eps=1e-5)
    return heads.linear(normalised, parameters, "qkv")
