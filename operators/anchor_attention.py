"""Attention to averages over a pyramid of grids, which both blocks of ANN share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import Implementation, merge_positions
from operators.layers import conv_norm_relu, pooling_matrix
from operators.scaled_attention import ScaledAttention


class AnchorAttention(nn.Module):
    """Attention of one map's pixels to the pooled pixels of another, or of the same.

    Equation: `y_i = W_o sum_a softmax_a(q_i . k_a / sqrt(d)) v_a + b_o` over the `S = sum_b b^2` anchors
    `k = pool(ReLU(BN(W_k low)))` and `v = pool(W_v low + b_v)`, where `pool` averages over a `b x b` grid for each `b`,
    and `q = ReLU(BN(W_q high))`. `W_o` and `b_o` start at zero.

    Args:
        channels: width `C` of the map that reads.
        low_channels: width `L` of the map that is read.
        width: `d`, channels of queries, keys and values.
        bins: sizes `b` of the grids.
        share: whether queries and keys are one projection of one map, which is both `high` and `low`.
        scale: whether the products are divided by `sqrt(d)`.
        implementation: `"reference"` builds the `N x S` weights and projects values before pooling; `"fused"` does
            not, and pools before projecting.

    Shape:
        `(B, C, H, W), (B, L, H', W') -> (B, C, H, W)`.

    Raises:
        ValueError: if `bins` is empty or holds a size below 1.
    """

    def __init__(
        self,
        channels: int,
        low_channels: int,
        width: int,
        *,
        bins: Sequence[int],
        share: bool,
        scale: bool,
        implementation: Implementation,
    ) -> None:
        super().__init__()
        if not bins or min(bins) < 1:
            raise ValueError(f"AnchorAttention: expected bins >= 1, got {tuple(bins)}")
        self.bins = tuple(bins)
        self.anchors = sum(size**2 for size in self.bins)
        self.channels, self.low_channels, self.width = channels, low_channels, width
        self.key = conv_norm_relu(low_channels, width)
        self.query = None if share else conv_norm_relu(channels, width)
        self.value = nn.Conv2d(low_channels, width, 1)
        self.core = ScaledAttention(width, scale=scale, implementation=implementation)
        self.out = nn.Conv2d(width, channels, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """What the pixels of `high` read from `low`."""
        query, key = self.project(high, low)
        read = self.core(query, key, self.values(low)).reshape(len(high), self.width, *high.shape[-2:])  # (B, d, H, W)
        out: Tensor = self.out(read)
        return out

    def project(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """Queries `(B, d, N)` and pooled keys `(B, d, S)`."""
        keys = self.key(low)  # (B, d, H', W')
        queries = keys if self.query is None else self.query(high)
        return merge_positions(queries), self.pool(keys)

    def values(self, low: Tensor) -> Tensor:
        """Pooled values `(B, d, S)`."""
        if not self.core.fused:
            return self.pool(self.value(low))
        # Averaging commutes with an affine map: S pixels are projected instead of N.
        projected: Tensor = self.value(self.pool(low).unsqueeze(3)).squeeze(3)
        return projected

    def pool(self, x: Tensor) -> Tensor:
        """Averages `(B, C, S)` over the cells of all grids, the smallest grid first where `bins` ascend."""
        return torch.cat([merge_positions(F.adaptive_avg_pool2d(x, size)) for size in self.bins], dim=2)

    def macs(self, pixels: int, low_pixels: int) -> int:
        """Multiply-accumulates for `N` pixels that read the anchors of `M` pixels."""
        values = self.anchors if self.core.fused else low_pixels
        projections = (low_pixels + values) * self.low_channels + pixels * self.channels
        if self.query is not None:
            projections += pixels * self.channels
        return self.width * (projections + 2 * pixels * self.anchors)

    def pixel_weights(self, high: Tensor, low: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, 1, H', W')` over the pixels of `low`: each anchor's, spread evenly over its cell."""
        row, column = position
        query, key = self.project(high, low)
        index = row * high.shape[3] + column
        weights = self.core.weights(query[:, :, index : index + 1], key)  # (B, 1, S)
        height, width = low.shape[-2:]
        spread = torch.zeros_like(low[:, :1])
        for size, grid in zip(self.bins, torch.split(weights, [size**2 for size in self.bins], dim=2), strict=True):
            cells = grid.reshape(-1, 1, size, size)
            rows, columns = pooling_matrix(height, size, low), pooling_matrix(width, size, low)
            spread = spread + rows.T @ cells @ columns  # (B, 1, H', W')
        return spread
