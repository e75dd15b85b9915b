"""What transformers' operators share: tokens, heads, and softmax attention over heads."""

from __future__ import annotations

import math
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import Implementation


class HeadAttention(nn.Module):
    """Attention by scaled dot products, each head by itself; without parameters.

    Equation: `y_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j`.

    Args:
        width: `d`, channels of a head's queries and keys.
        implementation: `"reference"` builds the `N x M` weights of each head, `"fused"` does not.

    Shape:
        `query (B, h, N, d), key (B, h, M, d), value (B, h, M, D) -> (B, h, N, D)`.

    Cost:
        `h N M (d + D)` multiply-accumulates.

    Raises:
        ValueError: if `implementation` is unknown.

    Example:
        >>> tokens = torch.randn(2, 8, 35, 4)
        >>> HeadAttention(4)(tokens, tokens, tokens).shape
        torch.Size([2, 8, 35, 4])
    """

    def __init__(self, width: int, *, implementation: Implementation = "reference") -> None:
        super().__init__()
        if implementation not in get_args(Implementation):
            raise ValueError(
                f"HeadAttention: expected implementation in {get_args(Implementation)}, got {implementation!r}"
            )
        self.factor = 1 / math.sqrt(width)
        self.fused = implementation == "fused"

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The sums `y`."""
        if self.fused:
            return F.scaled_dot_product_attention(query, key, value, scale=self.factor)
        return torch.matmul(self.weights(query, key), value)

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Weights `(B, h, N, M)`; each row sums to one."""
        return torch.softmax(torch.matmul(query * self.factor, key.transpose(2, 3)), dim=3)


def to_tokens(x: Tensor) -> Tensor:
    """`(B, C, H, W) -> (B, N, C)`, row by row."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """`(B, N, C) -> (B, C, H, W)` with the height and width of `like`."""
    return torch.unflatten(tokens.transpose(1, 2), 2, like.shape[-2:])


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """`(B, N, h d) -> (B, h, N, d)`; the channels of a head lie side by side.

    Example:
        >>> split_heads(torch.arange(6).reshape(1, 1, 6), 2).tolist()
        [[[[0, 1, 2]], [[3, 4, 5]]]]
    """
    return torch.unflatten(tokens, 2, (num_heads, -1)).transpose(1, 2)


def merge_heads(heads: Tensor) -> Tensor:
    """`(B, h, N, d) -> (B, N, h d)`, which undoes `split_heads`."""
    return heads.transpose(1, 2).flatten(2)


def position_of(x: Tensor, position: tuple[int, int]) -> slice:
    """Where the token of `position` (row, column) of the map `x` lies among its tokens."""
    row, column = position
    index = row * x.shape[3] + column
    return slice(index, index + 1)
