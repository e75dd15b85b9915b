"""Dual attention from the paper's equations: one number at a time, and pixel by pixel where gradients are asked for."""

from __future__ import annotations

import math

import torch
from oracle_layers import Map, Parameters, affine, each
from torch import Tensor

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


def position_block(x: Map, parameters: Parameters) -> Map:
    """Equations (1) and (2) through which autograd runs."""
    queries, keys, values = (affine(x, parameters, name) for name in ("query", "key", "value"))
    flat_keys = [pixel for row in keys for pixel in row]
    flat_values = [pixel for row in values for pixel in row]

    def read(query: Tensor) -> Tensor:
        powers = [torch.exp(query @ key) for key in flat_keys]
        total = torch.stack(powers).sum()
        return torch.stack([power / total * v for power, v in zip(powers, flat_values, strict=True)]).sum(0)

    return each(lambda pixel, query: pixel + parameters["gamma"] * read(query), x, queries)


def channel_block(x: Map, parameters: Parameters) -> Map:
    """Equations (3) and (4), energies inverted, through which autograd runs."""
    pixels = [pixel for row in x for pixel in row]
    channels = range(len(pixels[0]))
    weights = []
    for c in channels:
        energies = [torch.stack([pixel[c] * pixel[d] for pixel in pixels]).sum() for d in channels]
        highest = torch.stack(energies).max()
        powers = [torch.exp(highest - energy) for energy in energies]
        weights.append([power / torch.stack(powers).sum() for power in powers])

    def mix(pixel: Tensor) -> Tensor:
        return torch.stack([torch.stack([w * pixel[d] for d, w in enumerate(row)]).sum() for row in weights])

    return each(lambda pixel: pixel + parameters["gamma"] * mix(pixel), x)


def dual_block(x: Map, parameters: Parameters) -> Map:
    """Both branches on the same features, summed."""

    def own(branch: str) -> Parameters:
        return {name.removeprefix(f"{branch}."): value for name, value in parameters.items() if branch in name}

    return each(torch.add, position_block(x, own("position")), channel_block(x, own("channel")))
