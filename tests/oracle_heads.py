"""Layers of transformers, written out token by token; `tokens` are a list of `(C,)`."""

from __future__ import annotations

import math

import torch
from oracle_layers import Map, Parameters
from torch import Tensor

Tokens = list[Tensor]


def tokens_of(x: Map) -> Tokens:
    """Pixels row by row."""
    return [pixel for row in x for pixel in row]


def map_of(tokens: Tokens, like: Map) -> Map:
    """Tokens as rows as wide as those of `like`."""
    width = len(like[0])
    return [tokens[start : start + width] for start in range(0, len(tokens), width)]


def layer_norm(tokens: Tokens, parameters: Parameters, prefix: str, *, eps: float) -> Tokens:
    """Each token with its own mean and variance."""
    normalised = []
    for token in tokens:
        mean = token.sum() / len(token)
        variance = ((token - mean) ** 2).sum() / len(token)
        scaled = (token - mean) / (variance + eps).sqrt()
        normalised.append(scaled * parameters[f"{prefix}.weight"] + parameters[f"{prefix}.bias"])
    return normalised


def linear(tokens: Tokens, parameters: Parameters, prefix: str) -> Tokens:
    """`W t + b`."""
    return [parameters[f"{prefix}.weight"] @ token + parameters[f"{prefix}.bias"] for token in tokens]


def part(tokens: Tokens, index: int, parts: int) -> Tokens:
    """Part `index` of the channels, cut into `parts` equal ones: a head, or queries among queries, keys and values."""
    width = len(tokens[0]) // parts
    return [token[index * width : (index + 1) * width] for token in tokens]


def softmax_rows(queries: Tokens, keys: Tokens) -> list[list[Tensor]]:
    """Weights of each query over the keys, by scaled dot products."""
    rows = []
    for query in queries:
        kernels = [torch.exp((query * key).sum() / math.sqrt(len(query))) for key in keys]
        rows.append([kernel / sum(kernels) for kernel in kernels])
    return rows


def weighted(rows: list[list[Tensor]], values: Tokens) -> Tokens:
    """Sum over the values for each row of weights."""
    return [sum(weight * value for weight, value in zip(row, values, strict=True)) for row in rows]


def concatenate(heads: list[Tokens]) -> Tokens:
    """The heads' channels one behind the other."""
    return [torch.cat(pieces) for pieces in zip(*heads, strict=True)]


def add(x: Map, tokens: Tokens) -> Map:
    """Residual."""
    return map_of([pixel + token for pixel, token in zip(tokens_of(x), tokens, strict=True)], x)
