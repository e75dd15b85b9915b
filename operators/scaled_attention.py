"""What asymmetric, interlaced and object-contextual attention share: scaled dot products and projections."""

from __future__ import annotations

import math
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import Implementation
from operators.layers import conv_norm_relu


class ScaledAttention(nn.Module):
    """Attention by scaled dot products; without parameters.

    Equation: `y_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j`.

    Args:
        width: `d`, channels of queries and keys.
        scale: whether the products are divided by `sqrt(d)`.
        implementation: `"reference"` builds the `N x M` weights, `"fused"` does not.

    Shape:
        `query (B, d, N), key (B, d, M), value (B, D, M) -> (B, D, N)`.

    Cost:
        `N M (d + D)` multiply-accumulates.

    Raises:
        ValueError: if `implementation` is unknown.
    """

    def __init__(self, width: int, *, scale: bool = True, implementation: Implementation = "reference") -> None:
        super().__init__()
        if implementation not in get_args(Implementation):
            raise ValueError(
                f"ScaledAttention: expected implementation in {get_args(Implementation)}, got {implementation!r}"
            )
        self.factor = 1 / math.sqrt(width) if scale else 1.0
        self.fused = implementation == "fused"

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The sums `y`."""
        if not self.fused:
            return torch.bmm(value, self.weights(query, key).transpose(1, 2))  # (B, D, N)
        queries, keys, values = (tensor.transpose(1, 2).unsqueeze(1) for tensor in (query, key, value))
        read = F.scaled_dot_product_attention(queries, keys, values, scale=self.factor)  # (B, 1, N, D)
        return read.squeeze(1).transpose(1, 2)  # (B, D, N)

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Weights `(B, N, M)`; each row sums to one."""
        return torch.softmax(torch.bmm(query.transpose(1, 2), key) * self.factor, dim=2)


def project_twice(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 1x1 convolutions, each with normalisation and ReLU, one on the other."""
    return nn.Sequential(conv_norm_relu(in_channels, out_channels), conv_norm_relu(out_channels, out_channels))
