"""Neighbourhood attention, written out: each pixel reads the nearest pixels of its own phase along each axis."""

from __future__ import annotations

from oracle_layers import Map, Parameters
from oracle_local_attention import add, layer_norm, linear, project, read


def nearest(position: int, length: int, kernel_size: int, dilation: int) -> list[int]:
    """The `kernel_size` positions of the phase around which `position` is most central, in order."""
    phase = list(range(position % dilation, length, dilation))
    own = phase.index(position)
    runs = [list(range(start, start + kernel_size)) for start in range(len(phase) - kernel_size + 1)]
    runs = runs or [list(range(len(phase)))]
    central = min(runs, key=lambda run: abs(sum(run) / len(run) - own))
    return [phase[number] for number in central]


def block(x: Map, parameters: Parameters, *, num_heads: int, kernel_size: int, dilation: int = 1) -> Map:
    """Normalisation, attention to the neighbourhood of each pixel, output projection and residual."""
    height, width = len(x), len(x[0])
    queries, keys, values = project(layer_norm(x, parameters, "norm"), parameters, "query_key_value")
    table = parameters["position"]

    def at(row: int, column: int):
        members = [
            (r, c)
            for r in nearest(row, height, kernel_size, dilation)
            for c in nearest(column, width, kernel_size, dilation)
        ]
        offsets = [((row - r) // dilation, (column - c) // dilation) for r, c in members]
        biases = [table[:, up + kernel_size - 1, left + kernel_size - 1] for up, left in offsets]
        return read(
            queries[row][column],
            [keys[r][c] for r, c in members],
            [values[r][c] for r, c in members],
            biases,
            num_heads,
        )

    return add(x, linear([[at(row, column) for column in range(width)] for row in range(height)], parameters, "out"))
