"""The global context block from equation (5), one number at a time, in plain Python."""

from __future__ import annotations

import math

Matrix = list[list[float]]


def attention_weights(x: Matrix, mask: list[float], bias: float) -> list[float]:
    """Softmax over the positions of `x` (positions x channels)."""
    energies = [sum(w * value for w, value in zip(mask, pixel, strict=True)) + bias for pixel in x]
    highest = max(energies)
    powers = [math.exp(energy - highest) for energy in energies]
    return [power / sum(powers) for power in powers]


def pool(x: Matrix, weights: list[float]) -> list[float]:
    """Weighted sum of the positions."""
    return [sum(w * pixel[c] for w, pixel in zip(weights, x, strict=True)) for c in range(len(x[0]))]


def transform(
    context: list[float],
    first: tuple[Matrix, list[float]],
    norm: tuple[list[float], list[float]],
    last: tuple[Matrix, list[float]],
) -> list[float]:
    """Bottleneck: linear, layer normalisation, ReLU, linear."""
    hidden = _linear(context, *first)
    mean = sum(hidden) / len(hidden)
    deviation = math.sqrt(sum((h - mean) ** 2 for h in hidden) / len(hidden) + 1e-5)
    normalised = [gain * (h - mean) / deviation + shift for h, gain, shift in zip(hidden, *norm, strict=True)]
    return _linear([max(0.0, h) for h in normalised], *last)


def _linear(values: list[float], weight: Matrix, bias: list[float]) -> list[float]:
    return [sum(w * v for w, v in zip(row, values, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def fuse(x: Matrix, add: list[float] | None, multiply: list[float] | None) -> Matrix:
    """Product with the sigmoid first, then the sum, at every position."""
    out = []
    for pixel in x:
        fused = list(pixel)
        if multiply is not None:
            fused = [value / (1 + math.exp(-m)) for value, m in zip(fused, multiply, strict=True)]
        if add is not None:
            fused = [value + a for value, a in zip(fused, add, strict=True)]
        out.append(fused)
    return out
