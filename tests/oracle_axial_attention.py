"""The axial-attention block, written out line by line, head by head and pixel by pixel."""

from __future__ import annotations

import oracle_layers as layers
import torch
from oracle_layers import Map, Parameters
from torch import Tensor

Weights = dict[tuple[int, int, int], list[Tensor]]


def block(x: Map, parameters: Parameters, num_heads: int, span: int) -> Map:
    """Bottleneck, both layers, residual and ReLU."""
    inner = layers.conv_norm_relu(x, parameters, "down")
    for name in ("height_layer", "width_layer"):
        inner, _ = layer(inner, parameters, name, num_heads, span)
    up = layers.normalise(layers.affine(layers.relu(inner), parameters, "up.conv"), parameters, "up.norm")
    return layers.relu(layers.each(torch.add, x, up))


def layer(x: Map, parameters: Parameters, prefix: str, num_heads: int, span: int) -> tuple[Map, Weights]:
    """One layer: its map, and its weights over the line by (head, row, column)."""
    if prefix.startswith("height"):
        turned, weights = layer(_transposed(x), _renamed(parameters, prefix), "width_layer", num_heads, span)
        return _transposed(turned), {(head, i, j): row for (head, j, i), row in weights.items()}
    projected = layers.affine(x, parameters, f"{prefix}.project")
    projected = layers.normalise(projected, parameters, f"{prefix}.project_norm")
    width = len(projected[0][0]) // 2
    contents, positions, weights = [], [], {}
    for i, line in enumerate(projected):
        contents.append([])
        positions.append([])
        for o in range(len(line)):
            content, position = [], []
            for head in range(num_heads):
                qkv = [pixel.unflatten(0, (num_heads, -1))[head] for pixel in line]
                row = _softmax(qkv, o, parameters, prefix, head, num_heads, span)
                weights[head, i, o] = row
                d = width // num_heads
                content.append(sum(weight * pixel[d:] for weight, pixel in zip(row, qkv, strict=True)))
                shifts = [_embedding(parameters, prefix, p - o, span)[d:] for p in range(len(line))]
                position.append(sum(weight * shift for weight, shift in zip(row, shifts, strict=True)))
            contents[-1].append(torch.cat(content))
            positions[-1].append(torch.cat(position))
    both = layers.normalise(layers.concatenate(contents, positions), parameters, f"{prefix}.out_norm")
    return layers.each(lambda pixel: pixel[:width] + pixel[width:], both), weights


def _softmax(
    line: list[Tensor], o: int, parameters: Parameters, prefix: str, head: int, num_heads: int, span: int
) -> list[Tensor]:
    half = len(line[0]) // 4
    query, logits = line[o][:half], []
    for p, pixel in enumerate(line):
        key, shift = pixel[half : 2 * half], _embedding(parameters, prefix, p - o, span)
        terms = (query @ key, query @ shift[:half], key @ shift[half : 2 * half])
        logits.append(
            sum(_normalised(term, parameters, prefix, index * num_heads + head) for index, term in enumerate(terms))
        )
    kernels = [torch.exp(logit) for logit in logits]
    return [kernel / sum(kernels) for kernel in kernels]


def _embedding(parameters: Parameters, prefix: str, offset: int, span: int) -> Tensor:
    return parameters[f"{prefix}.relative"][:, min(max(offset, -(span - 1)), span - 1) + span - 1]


def _normalised(logit: Tensor, parameters: Parameters, prefix: str, channel: int) -> Tensor:
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, gain, shift = (parameters[f"{prefix}.logit_norm.{name}"][channel] for name in names)
    return gain * (logit - mean) / (variance + 1e-5).sqrt() + shift


def _transposed(x: Map) -> Map:
    return [list(column) for column in zip(*x, strict=True)]


def _renamed(parameters: Parameters, prefix: str) -> Parameters:
    return {f"width_layer{name.removeprefix(prefix)}": value for name, value in parameters.items() if prefix in name}
