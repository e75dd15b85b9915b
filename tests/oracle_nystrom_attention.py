"""Nystrom attention, written out head by head and token by token."""

from __future__ import annotations

import oracle_heads as heads
import torch
from oracle_layers import Map, Parameters
from torch import Tensor


def segments(tokens: heads.Tokens, count: int) -> heads.Tokens:
    """Means over `count` runs of tokens; the last `len(tokens) % count` runs are one token longer."""
    short, longer = len(tokens) // count, len(tokens) % count
    means, start = [], 0
    for index in range(count):
        length = short + (index >= count - longer)
        means.append(sum(tokens[start : start + length]) / length)
        start += length
    return means


def pseudoinverse(matrix: Tensor, iterations: int) -> Tensor:
    """The iteration, from the transposed matrix over the product of its two norms."""
    size = len(matrix)
    largest_column = max(sum(abs(matrix[row, column]) for row in range(size)) for column in range(size))
    largest_row = max(sum(abs(matrix[row, column]) for column in range(size)) for row in range(size))
    estimate, one = matrix.T / (largest_column * largest_row), torch.eye(size, dtype=matrix.dtype)
    for _ in range(iterations):
        reached = matrix @ estimate
        estimate = 0.25 * estimate @ (13 * one - reached @ (15 * one - reached @ (7 * one - reached)))
    return estimate


def weights(x: Map, parameters: Parameters, num_heads: int, landmarks: int, iterations: int = 6) -> list[Tensor]:
    """For each head, the weights `(N, N)` of the approximation."""
    qkv = _projected(x, parameters)
    result = []
    for head in range(num_heads):
        query, key = (heads.part(heads.part(qkv, index, 3), head, num_heads) for index in (0, 1))
        if len(query) <= landmarks:
            result.append(_softmax(query, key))
            continue
        queries, keys = segments(query, landmarks), segments(key, landmarks)
        inverse = pseudoinverse(_softmax(queries, keys), iterations)
        result.append(_softmax(query, keys) @ inverse @ _softmax(queries, key))
    return result


def block(x: Map, parameters: Parameters, num_heads: int, landmarks: int, iterations: int = 6) -> Map:
    """The sublayer with its residual; without a kernel in `parameters` there is no convolution."""
    values = heads.part(_projected(x, parameters), 2, 3)
    read = []
    for head, rows in enumerate(weights(x, parameters, num_heads, landmarks, iterations)):
        value = heads.part(values, head, num_heads)
        tokens = heads.weighted([list(row) for row in rows], value)
        if "conv.weight" in parameters:
            kernel = parameters["conv.weight"][head, 0, :, 0]
            tokens = [token + _convolved(value, kernel, index) for index, token in enumerate(tokens)]
        read.append(tokens)
    return heads.add(x, heads.linear(heads.concatenate(read), parameters, "out"))


def _convolved(value: heads.Tokens, kernel: Tensor, index: int) -> Tensor:
    total = torch.zeros_like(value[0])
    for tap in range(len(kernel)):
        source = index + tap - len(kernel) // 2
        if 0 <= source < len(value):
            total = total + kernel[tap] * value[source]
    return total


def _softmax(queries: heads.Tokens, keys: heads.Tokens) -> Tensor:
    return torch.stack([torch.stack(row) for row in heads.softmax_rows(queries, keys)])


def _projected(x: Map, parameters: Parameters) -> heads.Tokens:
    normalised = heads.layer_norm(heads.tokens_of(x), parameters, "norm", eps=1e-5)
    return heads.linear(normalised, parameters, "qkv")
