"""Double and efficient attention, written out pixel by pixel, channel by channel and head by head."""

from __future__ import annotations

import torch
from oracle_layers import Map, Parameters, affine, concatenate, conv_norm_relu, each, normalise
from torch import Tensor


def gather(weights: list[Tensor], values: list[Tensor], index: int) -> Tensor:
    """`sum_j softmax_j(w_j[index]) v_j` over the positions."""
    powers = [torch.exp(weight[index]) for weight in weights]
    return torch.stack([power / sum(powers) * value for power, value in zip(powers, values, strict=True)]).sum(0)


def distribute(vector: Tensor, gathered: list[Tensor]) -> Tensor:
    """`sum_k softmax_k(vector_k) g_k` over what was gathered."""
    powers = [torch.exp(entry) for entry in vector]
    return torch.stack([power / sum(powers) * g for power, g in zip(powers, gathered, strict=True)]).sum(0)


def scaled(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """`sum_j (q . k_j) v_j / N` over the positions, pair by pair."""
    return torch.stack([(query @ key) * value / len(keys) for key, value in zip(keys, values, strict=True)]).sum(0)


def read(x: Map, parameters: Parameters, *, num_heads: int = 1, normalization: str = "softmax") -> Map:
    """What every pixel reads from the map, mapped back to its channels."""
    queries, keys, values = (
        [pixel for row in affine(x, parameters, f"stage.{part}") for pixel in row] for part in ("query", "key", "value")
    )
    heads = []
    for head in range(num_heads):
        query, key, value = (
            [pixel[head * len(pixel) // num_heads :][: len(pixel) // num_heads] for pixel in pixels]
            for pixels in (queries, keys, values)
        )
        if normalization == "softmax":
            gathered = [gather(key, value, index) for index in range(len(key[0]))]
            heads.append([distribute(vector, gathered) for vector in query])
        else:
            heads.append([scaled(vector, key, value) for vector in query])
    pixels = [torch.cat(parts) for parts in zip(*heads, strict=True)]
    width = len(x[0])
    rows = [pixels[start : start + width] for start in range(0, len(pixels), width)]
    return affine(rows, parameters, "stage.out")


def double_attention(x: Map, parameters: Parameters, *, fusion: str) -> Map:
    """The block of A2-Nets in evaluation."""
    mixed = read(x, parameters)
    if fusion == "concatenate":
        return conv_norm_relu(concatenate(mixed, x), parameters, "fuse")
    return each(torch.add, x, normalise(mixed, parameters, "norm") if fusion == "add_norm" else mixed)


def efficient_attention(x: Map, parameters: Parameters, *, num_heads: int, normalization: str) -> Map:
    """The efficient attention module."""
    return each(torch.add, x, read(x, parameters, num_heads=num_heads, normalization=normalization))
