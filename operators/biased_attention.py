"""What attention in windows and in neighbourhoods shares: scaled dot products of heads with a bias of their own."""

from __future__ import annotations

import math
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import Implementation
from operators.layers import head_width


class BiasedAttention(nn.Module):
    """Attention of many small groups by scaled dot products, with a bias on each pair; without parameters.

    Equation: `y_i = sum_j softmax_j(q_i . k_j / sqrt(d) + b_ij) v_j`; a pair whose bias is minus infinity is not read.

    Args:
        width: `d`, channels of one head.
        implementation: `"reference"` builds the weights, `"fused"` does not.

    Shape:
        `query (B, G, n, d), key (B, G, m, d), value (B, G, m, d), bias (G, n, m) -> (B, G, n, d)`, where a group `G` is
        one head of one window; leading dimensions of `bias` may broadcast.

    Cost:
        `2 G n m d` multiply-accumulates.

    Raises:
        ValueError: if `implementation` is unknown.
    """

    def __init__(self, width: int, *, implementation: Implementation = "reference") -> None:
        super().__init__()
        if implementation not in get_args(Implementation):
            raise ValueError(
                f"BiasedAttention: expected implementation in {get_args(Implementation)}, got {implementation!r}"
            )
        self.factor = 1 / math.sqrt(width)
        self.fused = implementation == "fused"

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """The sums `y`."""
        if self.fused:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None], scale=self.factor)
        return torch.matmul(self.weights(query, key, bias), value)

    def weights(self, query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
        """Weights `(B, G, n, m)`; each row sums to one."""
        return torch.softmax(torch.matmul(query, key.transpose(-2, -1)) * self.factor + bias, dim=-1)


def heads_by_width(owner: str, channels: int, num_heads: int | None, width: int = 32) -> tuple[int, int]:
    """`num_heads`, by default one for each `width` channels and at least one; and the channels of one head.

    Raises:
        ValueError: if `num_heads` is below 1 or does not divide `channels`.

    Example:
        >>> heads_by_width("ShiftedWindow", 512, None), heads_by_width("ShiftedWindow", 16, None)
        ((16, 32), (1, 16))
    """
    heads = max(1, channels // width) if num_heads is None else num_heads
    return heads, head_width(owner, channels, heads)


def position_table(num_heads: int, size: int) -> nn.Parameter:
    """Bias `(heads, 2 size - 1, 2 size - 1)` of each offset between two positions of a `size x size` window.

    Example:
        >>> position_table(4, 7).shape
        torch.Size([4, 13, 13])
    """
    table = nn.Parameter(torch.empty(num_heads, 2 * size - 1, 2 * size - 1))
    return nn.init.trunc_normal_(table, std=0.02)  # type: ignore[return-value]


def projection(in_channels: int, out_channels: int) -> nn.Linear:
    """Linear map with bias, initialised as in vision transformers."""
    linear = nn.Linear(in_channels, out_channels)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
