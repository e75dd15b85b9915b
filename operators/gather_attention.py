"""Attention that gathers the map into a few descriptors and distributes them: A2-Nets, efficient attention."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from operators.interface import Implementation, merge_positions
from operators.layers import affine_map, head_width

Normalization = Literal["softmax", "scaling"]


class GatherCore(nn.Module):
    """Products of queries with what the keys gathered from the values; without parameters.

    Equation, in each head: `y = (v k^T) q`, where the normalised keys `k` weigh positions and the normalised queries
    `q` weigh what each of the `d_k` keys gathered.

    Args:
        num_heads: heads that the channels are split into.
        normalization: `"softmax"` of each key over the positions and of each position's query over the channels of a
            head, or `"scaling"`, the division of both by `sqrt(N)`.

    Shape:
        `query (B, D_k, N), key (B, D_k, N), value (B, D_v, N) -> (B, D_v, N)`.

    Cost:
        `2 N D_k D_v / heads` multiply-accumulates.
    """

    def __init__(self, num_heads: int, normalization: Normalization) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.normalization = normalization

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What each position reads."""
        queries, keys = self.weights(query, key)
        gathered = torch.matmul(self.split(value), keys.transpose(2, 3))  # (B, h, d_v, d_k)
        return torch.matmul(gathered, queries).flatten(1, 2)  # (B, D_v, N)

    def weights(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised queries and keys `(B, h, d_k, N)`."""
        queries, keys = self.split(query), self.split(key)
        if self.normalization == "softmax":
            return torch.softmax(queries, dim=2), torch.softmax(keys, dim=3)
        factor = 1 / math.sqrt(key.shape[2])
        return queries * factor, keys * factor

    def split(self, x: Tensor) -> Tensor:
        """`(B, D, N) -> (B, h, d, N)`."""
        return x.reshape(len(x), self.num_heads, -1, x.shape[2])


class FusedGatherCore(GatherCore):
    """The same sums with both affine maps around them: these act on the descriptors instead of the positions.

    Equation, summed over the heads: `y = W_o (W_v x k^T + b_v (k 1)^T) q + b_o`, where `1` sums over the positions.

    Shape:
        `query (B, D_k, N), key (B, D_k, N), x (B, C, N), [W_v, b_v] (D_v, C + 1), [W_o, b_o] (C, D_v + 1)
        -> (B, C, N)`.

    Cost:
        `2 N C D_k + 2 C D_k D_v / heads` multiply-accumulates.
    """

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, x: Tensor, value_map: Tensor, out_map: Tensor
    ) -> Tensor:
        """What each position reads, mapped to the channels of the map."""
        queries, keys = self.weights(query, key)
        gathered = torch.bmm(x, keys.flatten(1, 2).transpose(1, 2))  # (B, C, D_k)
        heads = gathered.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # (B, h, C, d_k)
        weight, bias = value_map[:, :-1], value_map[:, -1]
        values = torch.matmul(weight.reshape(self.num_heads, -1, x.shape[1]), heads)  # (B, h, d_v, d_k)
        values = values + bias.reshape(self.num_heads, -1, 1) * keys.sum(3).unsqueeze(2)
        of_heads = out_map[:, :-1].reshape(x.shape[1], self.num_heads, -1).transpose(0, 1)  # (h, C, d_v)
        mapped = torch.matmul(of_heads, values).transpose(1, 2).flatten(2)  # (B, C, D_k)
        return torch.bmm(mapped, queries.flatten(1, 2)) + out_map[:, -1:]


class GatherAttention(nn.Module):
    """Queries, keys and values by 1x1 convolutions, the sums of `GatherCore`, and a 1x1 convolution.

    Args:
        channels: width `C` of the map.
        key_width: `D_k`, channels of queries and keys.
        value_width: `D_v`, channels of the values.
        num_heads: heads that both are split into.
        normalization: of queries and keys; see `GatherCore`.
        implementation: `"reference"` maps every position to values and back, `"fused"` the descriptors alone.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Raises:
        ValueError: if an argument is outside its range.
    """

    core: GatherCore

    def __init__(
        self,
        channels: int,
        key_width: int,
        value_width: int,
        *,
        num_heads: int = 1,
        normalization: Normalization = "softmax",
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__()
        for name, width in {"key_width": key_width, "value_width": value_width}.items():
            if width < 1:
                raise ValueError(f"GatherAttention: expected {name} >= 1, got {width!r}")
            head_width("GatherAttention", width, num_heads)
        if normalization not in get_args(Normalization):
            raise ValueError(
                f"GatherAttention: expected normalization in {get_args(Normalization)}, got {normalization!r}"
            )
        if implementation not in get_args(Implementation):
            raise ValueError(
                f"GatherAttention: expected implementation in {get_args(Implementation)}, got {implementation!r}"
            )
        self.channels, self.key_width, self.value_width = channels, key_width, value_width
        self.fused = implementation == "fused"
        self.query = nn.Conv2d(channels, key_width, 1)
        self.key = nn.Conv2d(channels, key_width, 1)
        self.value = nn.Conv2d(channels, value_width, 1)
        core = FusedGatherCore if self.fused else GatherCore
        self.core = core(num_heads, normalization)
        self.out = nn.Conv2d(value_width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """What each pixel reads from the map."""
        query, key = merge_positions(self.query(x)), merge_positions(self.key(x))
        if self.fused:
            mapped = self.core(query, key, merge_positions(x), affine_map(self.value), affine_map(self.out))
            folded: Tensor = mapped.reshape(x.shape)
            return folded
        read = self.core(query, key, merge_positions(self.value(x)))  # (B, D_v, N)
        out: Tensor = self.out(read.reshape(len(x), -1, *x.shape[-2:]))
        return out

    def macs(self, pixels: int) -> int:
        """Multiply-accumulates for `N` pixels."""
        descriptors = self.key_width * self.value_width // self.core.num_heads
        if self.fused:
            return 4 * pixels * self.channels * self.key_width + 2 * self.channels * descriptors
        return 2 * pixels * (self.channels * (self.key_width + self.value_width) + descriptors)

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised queries and keys `(B, h, d_k, N)` of a map."""
        return self.core.weights(merge_positions(self.query(x)), merge_positions(self.key(x)))

    def pixel_weights(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, h, H, W)` with which the pixel at `position` sums the values of all pixels."""
        row, column = position
        queries, keys = self.weights(x)
        query = queries[..., row * x.shape[3] + column].unsqueeze(2)  # (B, h, 1, d_k)
        return torch.matmul(query, keys).reshape(*keys.shape[:2], *x.shape[-2:])
