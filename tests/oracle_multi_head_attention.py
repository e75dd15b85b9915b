"""Multi-head self-attention, written out head by head and pixel by pixel."""

from __future__ import annotations

import oracle_heads as heads
from oracle_layers import Map, Parameters


def weights(x: Map, parameters: Parameters, num_heads: int) -> list[list[list]]:
    """For each head and each pixel, its weights over all pixels."""
    qkv = _projected(x, parameters)
    queries, keys = heads.part(qkv, 0, 3), heads.part(qkv, 1, 3)
    return [
        heads.softmax_rows(heads.part(queries, head, num_heads), heads.part(keys, head, num_heads))
        for head in range(num_heads)
    ]


def block(x: Map, parameters: Parameters, num_heads: int) -> Map:
    """The sublayer with its residual."""
    values = heads.part(_projected(x, parameters), 2, 3)
    read = [
        heads.weighted(rows, heads.part(values, head, num_heads))
        for head, rows in enumerate(weights(x, parameters, num_heads))
    ]
    return heads.add(x, heads.linear(heads.concatenate(read), parameters, "out"))


def _projected(x: Map, parameters: Parameters) -> heads.Tokens:
    normalised = heads.layer_norm(heads.tokens_of(x), parameters, "norm", eps=1e-6)
    return heads.linear(normalised, parameters, "qkv")
