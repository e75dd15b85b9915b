"""Window attention, written out: windows lie on the padded map and are cut off at its borders, without any shift."""

from __future__ import annotations

import torch
from oracle_layers import Map, Parameters
from oracle_local_attention import add, layer_norm, linear, project, read


def pair(x: Map, parameters: Parameters, *, num_heads: int, window_size: int) -> Map:
    """Both layers."""
    x = layer(x, parameters, "regular", num_heads=num_heads, window_size=window_size, shift=0)
    return layer(x, parameters, "shifted", num_heads=num_heads, window_size=window_size, shift=window_size // 2)


def layer(x: Map, parameters: Parameters, prefix: str, *, num_heads: int, window_size: int, shift: int) -> Map:
    """One layer: pixels belong together where their row and column lie in the same window that starts at `shift`."""
    height, width = len(x), len(x[0])
    tall, wide = (-(-side // window_size) * window_size for side in (height, width))
    empty = torch.zeros_like(x[0][0])
    normed = layer_norm(x, parameters, f"{prefix}.norm")
    padded = [
        [normed[row][column] if row < height and column < width else empty for column in range(wide)]
        for row in range(tall)
    ]
    queries, keys, values = project(padded, parameters, f"{prefix}.query_key_value")
    table = parameters[f"{prefix}.position"]

    def at(row: int, column: int) -> torch.Tensor:
        members = [
            (r, c)
            for r in range(tall)
            for c in range(wide)
            if (r - shift) // window_size == (row - shift) // window_size
            and (c - shift) // window_size == (column - shift) // window_size
        ]
        biases = [table[:, row - r + window_size - 1, column - c + window_size - 1] for r, c in members]
        return read(
            queries[row][column],
            [keys[r][c] for r, c in members],
            [values[r][c] for r, c in members],
            biases,
            num_heads,
        )

    heads = [[at(row, column) for column in range(width)] for row in range(height)]
    return add(x, linear(heads, parameters, f"{prefix}.out"))
