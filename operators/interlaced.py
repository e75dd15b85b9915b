"""Interlaced sparse self-attention: first among pixels far apart, then among neighbours (ISA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, Implementation, OperatorSpec, Source, merge_positions
from operators.layers import branch_width, conv_norm_relu
from operators.registry import register
from operators.scaled_attention import ScaledAttention, project_twice


@dataclass(frozen=True)
class Tiling:
    """A map cut into windows, after zero padding on all sides where the windows do not divide it.

    Args:
        height: `H` of the map.
        width: `W` of the map.
        window: height and width `(p, q)` of a window.
    """

    height: int
    width: int
    window: tuple[int, int]

    @property
    def rows(self) -> int:
        """Windows in a column, `ceil(H / p)`."""
        return -(-self.height // self.window[0])

    @property
    def columns(self) -> int:
        """Windows in a row, `ceil(W / q)`."""
        return -(-self.width // self.window[1])

    @property
    def windows(self) -> int:
        """Number of windows."""
        return self.rows * self.columns

    @property
    def members(self) -> int:
        """Pixels of one window."""
        return self.window[0] * self.window[1]

    @property
    def top(self) -> int:
        """Padded rows above the map; as many or one more are below."""
        return (self.rows * self.window[0] - self.height) // 2

    @property
    def left(self) -> int:
        """Padded columns left of the map; as many or one more are right of it."""
        return (self.columns * self.window[1] - self.width) // 2

    def scatter(self, x: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B p q, C, rows, columns)`: the pixels at the same place of all windows together."""
        tall, wide = self.window
        below = self.rows * tall - self.height - self.top
        right = self.columns * wide - self.width - self.left
        padded = F.pad(x, (self.left, right, self.top, below))
        cells = padded.reshape(len(x), -1, self.rows, tall, self.columns, wide)
        return cells.permute(0, 3, 5, 1, 2, 4).reshape(-1, x.shape[1], self.rows, self.columns)

    def regroup(self, x: Tensor) -> Tensor:
        """`(B p q, C, rows, columns) -> (B rows columns, C, p, q)`: the pixels of a window together."""
        cells = x.reshape(-1, *self.window, *x.shape[1:])  # (B, p, q, C, rows, columns)
        return cells.permute(0, 4, 5, 3, 1, 2).reshape(-1, x.shape[1], *self.window)

    def gather(self, x: Tensor) -> Tensor:
        """`(B rows columns, C, p, q) -> (B, C, H, W)`: every pixel back in its place, the padding dropped."""
        cells = x.reshape(-1, self.rows, self.columns, *x.shape[1:])  # (B, rows, columns, C, p, q)
        tall, wide = self.window
        padded = cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, x.shape[1], self.rows * tall, self.columns * wide)
        return padded[:, :, self.top : self.top + self.height, self.left : self.left + self.width]


class Relation(nn.Module):
    """Self-attention within each of many small maps.

    Equation: `y_i = ReLU(BN(W_o sum_j softmax_j(q_i . k_j / sqrt(d)) (W_v x_j + b_v)))`, where `q` and `k` are two
    projections (1x1 convolution, batch normalisation, ReLU) each, one on the other.

    Args:
        channels: width `C` of the maps.
        width: `d`, channels of queries and keys.
        core: the attention.
        value_bias: whether there is `b_v`.

    Shape:
        `(G, C, h, w) -> (G, C, h, w)`.
    """

    def __init__(self, channels: int, width: int, core: ScaledAttention, *, value_bias: bool) -> None:
        super().__init__()
        self.query = project_twice(channels, width)
        self.key = project_twice(channels, width)
        self.value = nn.Conv2d(channels, channels, 1, bias=value_bias)
        self.out = conv_norm_relu(channels, channels)
        self.core = core

    def forward(self, x: Tensor) -> Tensor:
        """What the pixels of each map read from it."""
        query, key, value = (merge_positions(part(x)) for part in (self.query, self.key, self.value))
        read: Tensor = self.out(self.core(query, key, value).reshape(x.shape))
        return read

    def weights(self, x: Tensor, index: int) -> Tensor:
        """Weights `(G, h w)` with which pixel `index` of each map reads it."""
        query, key = merge_positions(self.query(x)), merge_positions(self.key(x))
        return self.core.weights(query[:, :, index : index + 1], key).squeeze(1)


@register
class InterlacedSparse(AttentionOperator):
    """Interlaced sparse self-attention: dense attention as the product of two sparse ones.

    Equation: `y = ReLU(BN(W [S(L(x)); x]))`. `L` is `Relation` among the pixels at the same place of all windows, `S`
    is `Relation` among the pixels of each window; together, every pixel reads every pixel. The map is padded with
    zeros on all sides until the windows divide it, and the padding takes part in both.

    Args:
        channels: width `C` of the map.
        width: `d`, channels of queries and keys; by default `C / 2`.
        window_size: height and width `(p, q)` of a window.
        value_bias: whether the values have a bias.
        implementation: `"reference"` builds all weights, `"fused"` runs `scaled_dot_product_attention`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`; maps smaller than a window are padded to one.

    Cost:
        `4 M (C^2 + C d + d^2) + M (p q + M / (p q)) (C + d) + 2 N C^2` multiply-accumulates for `M = p q R` padded
        pixels in `R = ceil(H / p) ceil(W / q)` windows.

    Raises:
        ValueError: if an argument is outside its range, or `channels` is odd and `width` not given.

    Source:
        Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation", arXiv 2019, arXiv:1907.12273,
        long-range and short-range attention.

    Deviations:
        The size of a window is fixed, as in the authors' code and mmsegmentation, so that the cost grows with `N^2`;
        the paper's `N^1.5` takes windows of `sqrt(N)` pixels. The values have a bias as in mmsegmentation; the
        authors' have none (`value_bias=False`).

    Example:
        >>> InterlacedSparse(16).eval()(torch.zeros(1, 16, 5, 19)).shape
        torch.Size([1, 16, 5, 19])
    """

    spec = OperatorSpec(
        name="interlaced_sparse",
        title="ISA",
        source=Source(
            title="Interlaced Sparse Self-Attention for Semantic Segmentation",
            venue="arXiv",
            year=2019,
            url="https://arxiv.org/abs/1907.12273",
            equations="long-range and short-range attention",
        ),
        reach="global",
        growth=2.0,
        implementations=("reference", "fused"),
        deviations=(
            "The size of a window is fixed as in the authors' code and mmsegmentation; the paper's cost in N^1.5 takes "
            "windows of sqrt(N) pixels: `window_size`.",
            "The values have a bias as in mmsegmentation, the authors' have none: `value_bias`.",
        ),
    )
    core: ScaledAttention

    def __init__(
        self,
        channels: int,
        *,
        width: int | None = None,
        window_size: Sequence[int] = (8, 8),
        value_bias: bool = True,
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        self.width = branch_width("InterlacedSparse", channels, width, 2)
        if len(window_size) != 2 or min(window_size) < 1:
            raise ValueError(f"InterlacedSparse: expected window_size (p, q) >= 1, got {window_size!r}")
        self.window_size = (window_size[0], window_size[1])
        self.core = ScaledAttention(self.width, implementation=implementation)
        self.long_range = Relation(channels, self.width, self.core, value_bias=value_bias)
        self.short_range = Relation(channels, self.width, self.core, value_bias=value_bias)
        self.fuse = conv_norm_relu(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Long-range, then short-range attention, fused with the map."""
        self.expect_map(x)
        tiling = self._tiling(x)
        distant = self.long_range(tiling.scatter(x))
        read = tiling.gather(self.short_range(tiling.regroup(distant)))  # (B, C, H, W)
        fused: Tensor = self.fuse(torch.cat((read, x), dim=1))
        return fused

    def _tiling(self, x: Tensor) -> Tiling:
        return Tiling(x.shape[2], x.shape[3], self.window_size)

    def macs(self, height: int, width: int) -> int:
        """Both relations on the padded map, and the fusing convolution on the map."""
        tiling = Tiling(height, width, self.window_size)
        padded = tiling.windows * tiling.members
        convolutions = 2 * (self.channels**2 + self.channels * self.width + self.width**2)
        pairs = (tiling.windows + tiling.members) * (self.channels + self.width)
        return padded * (2 * convolutions + pairs) + 2 * height * width * self.channels**2

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Products `(B, 1, H, W)` of the weights of both steps; what falls on the padding is dropped."""
        self.expect_position(x, position)
        tiling = self._tiling(x)
        row, column = position[0] + tiling.top, position[1] + tiling.left
        tall, wide = self.window_size
        window = (row // tall) * tiling.columns + column // wide
        member = (row % tall) * wide + column % wide
        scattered = tiling.scatter(x)
        distant = self.long_range.weights(scattered, window)  # (B p q, windows)
        neighbours = tiling.regroup(self.long_range(scattered))[window :: tiling.windows]  # (B, C, p, q)
        near = self.short_range.weights(neighbours, member)  # (B, p q)
        weights = distant * near.reshape(-1, 1)  # (B p q, windows)
        return tiling.gather(tiling.regroup(weights.reshape(-1, 1, tiling.rows, tiling.columns)))  # (B, 1, H, W)
