"""Pooling over a grid and bilinear resize, one number at a time, in plain Python."""

from __future__ import annotations

import math

Grid = list[list[float]]


def average_grid(plane: Grid, size: int) -> Grid:
    """Averages over `size x size` cells that cover the plane and overlap where it does not divide."""
    height, width = len(plane), len(plane[0])

    def cell(index: int, extent: int) -> range:
        return range(index * extent // size, math.ceil((index + 1) * extent / size))

    pooled = []
    for i in range(size):
        row = []
        for j in range(size):
            values = [plane[y][x] for y in cell(i, height) for x in cell(j, width)]
            row.append(sum(values) / len(values))
        pooled.append(row)
    return pooled


def resize(grid: Grid, height: int, width: int, *, align_corners: bool) -> Grid:
    """Bilinear resize; samples beyond the centres of the outermost cells repeat them."""
    rows = [_source(y, height, len(grid), align_corners) for y in range(height)]
    columns = [_source(x, width, len(grid[0]), align_corners) for x in range(width)]
    return [[_sample(grid, y, x) for x in columns] for y in rows]


def _source(index: int, length: int, cells: int, align_corners: bool) -> float:
    if align_corners:
        return index * (cells - 1) / (length - 1) if length > 1 else 0.0
    return max(0.0, (index + 0.5) * cells / length - 0.5)


def _sample(grid: Grid, y: float, x: float) -> float:
    top, left = int(y), int(x)
    bottom, right = min(top + 1, len(grid) - 1), min(left + 1, len(grid[0]) - 1)
    above = grid[top][left] * (1 - (x - left)) + grid[top][right] * (x - left)
    below = grid[bottom][left] * (1 - (x - left)) + grid[bottom][right] * (x - left)
    return above * (1 - (y - top)) + below * (y - top)
