"""Gates of channels, positions, rows and columns, written out channel by channel and position by position."""

from __future__ import annotations

import torch
from oracle_layers import Map, Parameters, mean, normalise
from torch import Tensor


def sigmoid(x: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))`."""
    return 1 / (1 + torch.exp(-x))


def perceptron(z: Tensor, parameters: Parameters, prefix: str) -> Tensor:
    """`W_2 ReLU(W_1 z + b_1) + b_2`, without biases where there are none; layers `0` and `2` under `prefix`."""
    hidden = parameters[f"{prefix}.0.weight"] @ z + parameters.get(f"{prefix}.0.bias", 0)
    return parameters[f"{prefix}.2.weight"] @ hidden.clamp(min=0) + parameters.get(f"{prefix}.2.bias", 0)


def scale(x: Map, gates: Map) -> Map:
    """Product of the pixels with the gates above them."""
    return [[pixel * gate for pixel, gate in zip(*rows, strict=True)] for rows in zip(x, gates, strict=True)]


def everywhere(gate: Tensor, like: Map) -> Map:
    """The same gate at each position."""
    return [[gate for _ in row] for row in like]


def squeeze_excitation(x: Map, parameters: Parameters) -> Map:
    return scale(x, everywhere(sigmoid(perceptron(mean(x), parameters, "excite")), x))


def efficient_channel(x: Map, parameters: Parameters) -> Map:
    """Each channel sees the averages of the channels beside it; those beyond the ends are zero."""
    kernel, averages = parameters["conv.weight"][0, 0], mean(x)
    reach, channels = len(kernel) // 2, len(averages)
    energies = []
    for c in range(channels):
        taps = [kernel[t] * averages[c + t - reach] for t in range(len(kernel)) if 0 <= c + t - reach < channels]
        energies.append(torch.stack(taps).sum())
    return scale(x, everywhere(sigmoid(torch.stack(energies)), x))


def cbam(x: Map, parameters: Parameters) -> Map:
    """Channels first, then positions; no two pixels are equal here, so that each maximum is one pixel's."""
    largest = torch.stack([max(values) for values in zip(*(pixel for row in x for pixel in row), strict=True)])
    prefix = "channel_gate.transform"
    energy = perceptron(mean(x), parameters, prefix) + perceptron(largest, parameters, prefix)
    x = scale(x, everywhere(sigmoid(energy), x))
    return scale(x, position_gates(x, parameters))


def position_gates(x: Map, parameters: Parameters) -> Map:
    kernel = parameters["spatial_gate.conv.weight"][0]
    bias = parameters.get("spatial_gate.conv.bias", torch.zeros(1, dtype=kernel.dtype))
    height, width, side = len(x), len(x[0]), kernel.shape[-1]

    def energy(row: int, column: int) -> Tensor:
        total = bias
        for i in range(side):
            for j in range(side):
                y, z = row + i - side // 2, column + j - side // 2
                if 0 <= y < height and 0 <= z < width:
                    pixel = x[y][z]
                    total = total + kernel[0, i, j] * max(pixel) + kernel[1, i, j] * pixel.sum() / len(pixel)
        return total

    energies = [[energy(row, column) for column in range(width)] for row in range(height)]
    if "spatial_gate.norm.weight" in parameters:
        energies = normalise(energies, parameters, "spatial_gate.norm")
    return [[sigmoid(value) for value in row] for row in energies]


def coordinate_attention(x: Map, parameters: Parameters) -> Map:
    rows, columns = line_means(x)
    row_gates = [line_gate(line, parameters, "row_gate") for line in rows]
    column_gates = [line_gate(line, parameters, "column_gate") for line in columns]
    return scale(x, [[row * column for column in column_gates] for row in row_gates])


def line_means(x: Map) -> tuple[list[Tensor], list[Tensor]]:
    """Averages of the rows and of the columns."""
    rows = [torch.stack(row).sum(0) / len(row) for row in x]
    columns = [torch.stack(column).sum(0) / len(column) for column in zip(*x, strict=True)]
    return rows, columns


def line_gate(line: Tensor, parameters: Parameters, prefix: str) -> Tensor:
    hidden = parameters["squeeze.weight"][:, :, 0, 0] @ line + parameters["squeeze.bias"]
    hidden = normalise([[hidden]], parameters, "norm")[0][0]
    hidden = hidden * (hidden + 3).clamp(0, 6) / 6
    return sigmoid(parameters[f"{prefix}.weight"][:, :, 0, 0] @ hidden + parameters[f"{prefix}.bias"])
