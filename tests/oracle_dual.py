"""Dual attention from the paper's equations, one number at a time, in plain Python."""

from __future__ import annotations

import math

Matrix = list[list[float]]


def _softmax(values: list[float]) -> list[float]:
    highest = max(values)
    powers = [math.exp(value - highest) for value in values]
    return [power / sum(powers) for power in powers]


def _affine(x: Matrix, weight: Matrix, bias: list[float]) -> Matrix:
    """`W x_i + b` for each position `i` of `x` (positions x channels)."""
    return [
        [sum(w * value for w, value in zip(row, pixel, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        for pixel in x
    ]


def position_attention(
    x: Matrix,
    query: tuple[Matrix, list[float]],
    key: tuple[Matrix, list[float]],
    value: tuple[Matrix, list[float]],
    gamma: float,
) -> Matrix:
    """Equations (1) and (2) on `x` (positions x channels)."""
    queries, keys, values = _affine(x, *query), _affine(x, *key), _affine(x, *value)
    out = []
    for pixel, q in zip(x, queries, strict=True):
        weights = _softmax([sum(a * b for a, b in zip(q, k, strict=True)) for k in keys])
        read = [sum(w * v[c] for w, v in zip(weights, values, strict=True)) for c in range(len(pixel))]
        out.append([original + gamma * r for original, r in zip(pixel, read, strict=True)])
    return out


def channel_attention(x: Matrix, gamma: float) -> Matrix:
    """Equations (3) and (4) on `x` (positions x channels), with the authors' inverted energies."""
    channels = [list(channel) for channel in zip(*x, strict=True)]
    mixed = []
    for channel in channels:
        energies = [sum(a * b for a, b in zip(channel, other, strict=True)) for other in channels]
        weights = _softmax([max(energies) - energy for energy in energies])
        read = [sum(w * other[i] for w, other in zip(weights, channels, strict=True)) for i in range(len(x))]
        mixed.append([original + gamma * r for original, r in zip(channel, read, strict=True)])
    return [list(pixel) for pixel in zip(*mixed, strict=True)]
