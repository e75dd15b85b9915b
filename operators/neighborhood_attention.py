"""Neighbourhood attention: each pixel reads the pixels around it, close together or dilated (NAT, DiNAT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from operators.biased_attention import BiasedAttention, heads_by_width, position_table, projection
from operators.interface import AttentionOperator, Implementation, OperatorSpec, Source
from operators.registry import register


@dataclass(frozen=True)
class Axis:
    """Rows or columns of a map, and which of them read which.

    Position `i` belongs to phase `i mod r` and is number `floor(i / r)` in it. It reads `k` successive positions of its
    phase: those around it, or the outermost where it lies near a border; all of them where there are fewer.

    Args:
        length: number of rows or columns.
        kernel_size: `k`.
        dilation: `r`.
    """

    length: int
    kernel_size: int
    dilation: int

    @property
    def longest(self) -> int:
        """Positions in the longest phase."""
        return -(-self.length // self.dilation)

    @property
    def neighbours(self) -> int:
        """Positions that one position reads at most."""
        return min(self.kernel_size, self.longest)

    @property
    def phases(self) -> int:
        """Phases that are not empty."""
        return min(self.dilation, self.length)

    @property
    def tiles(self) -> int:
        """Runs of `k` positions, padded, in all phases together."""
        return self.phases * -(-self.longest // self.kernel_size)

    @property
    def span(self) -> int:
        """Positions that hold what the `k` positions of a tile read."""
        return min(2 * self.kernel_size - 1, self.longest)

    def count(self, phase: Tensor) -> Tensor:
        """Positions in each of these phases."""
        return (self.length - 1 - phase) // self.dilation + 1

    def first(self, number: Tensor, phase: Tensor) -> Tensor:
        """Number of the first position that each position reads."""
        last = (self.count(phase) - self.kernel_size).clamp(min=0)
        return torch.minimum((number - self.kernel_size // 2).clamp(min=0), last)

    def around(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Which positions `(n, neighbours)` these positions `(n)` read, and their offsets; minus one for none."""
        phase, number = position % self.dilation, position // self.dilation
        read = self.first(number, phase)[:, None] + torch.arange(self.neighbours, device=position.device)
        offset = number[:, None] - read + self.kernel_size - 1
        return self._existing(read, offset, phase[:, None])

    def tiled(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Positions `(tiles, k)`, those they may read `(tiles, span)`, and offsets `(tiles, k, span)` or minus one."""
        runs = -(-self.longest // self.kernel_size)
        tile = torch.arange(self.tiles, device=device)
        phase, steps = (tile // runs)[:, None], torch.arange(self.kernel_size, device=device)
        number = torch.minimum((tile % runs)[:, None] * self.kernel_size + steps, self.count(phase) - 1)  # (tiles, k)
        first = self.first(number, phase)
        start = torch.minimum(first[:, :1], (self.count(phase) - self.span).clamp(min=0))
        read = start + torch.arange(self.span, device=device)  # (tiles, span)
        offset = number[:, :, None] - read[:, None] + self.kernel_size - 1
        within = (read[:, None] >= first[:, :, None]) & (read[:, None] < first[:, :, None] + self.kernel_size)
        offset = torch.where(within, offset, -1)
        position, offset = self._existing(read[:, None], offset, phase[:, None])
        return number * self.dilation + phase, position[:, 0], offset

    def slots(self, device: torch.device) -> Tensor:
        """Where the tiles hold each position `(length)`."""
        position = torch.arange(self.length, device=device)
        padded = self.tiles // self.phases * self.kernel_size
        return position % self.dilation * padded + position // self.dilation

    def _existing(self, number: Tensor, offset: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of these numbers of a phase; past its end the last one, with the offset minus one."""
        last = self.count(phase) - 1
        return torch.minimum(number, last) * self.dilation + phase, torch.where(number <= last, offset, -1)


@register
class NeighborhoodAttention(AttentionOperator):
    """Neighbourhood attention: each pixel reads the `k x k` pixels nearest to it, or every `r`-th of a wider square.

    Equation: `y = x + W_o [head_1; ...; head_h] + b_o`, for each pixel `i`
    `head_i = sum_{j in N(i)} softmax_j(q_i . k_j / sqrt(d) + P(i - j)) v_j`, with projections of `LN(x)` and a learned
    bias `P` for each offset. At the borders the neighbourhood is moved inwards, so that every pixel has `k^2`
    neighbours.

    Args:
        channels: width `C` of the map.
        num_heads: heads `h`; by default one for each 32 channels.
        kernel_size: `k`, odd.
        dilation: `r`; the map then falls apart into `r^2` maps that do not read each other.
        implementation: `"reference"` gathers the neighbourhood of each pixel. `"fused"` gathers the union of those of
            `k x k` pixels, and runs `scaled_dot_product_attention` on it with a mask: several times the products,
            and for `k = 7` less than a tenth of the gathered keys and values on large maps.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `4 N C^2 + 2 N k_y k_x C` multiply-accumulates with `k_y = min(k, ceil(H / r))`, `k_x` likewise; fused,
        `4 N C^2 + 2 T k^2 s_y s_x C` for `T` tiles, with `s_y = min(2 k - 1, ceil(H / r))`, `s_x` likewise.

    Raises:
        ValueError: if an argument is outside its range, or `num_heads` does not divide `channels`.

    Source:
        Hassani et al., "Neighborhood Attention Transformer", CVPR 2023, arXiv:2204.07143, Eq. 2-4; with dilation
        Hassani and Shi, "Dilated Neighborhood Attention Transformer", arXiv 2022, arXiv:2209.15001.

    Deviations:
        The operator is the attention of a block with normalisation and residual, without the feed-forward part. Where a
        map, or one of the `r^2` maps, has fewer than `k` rows or columns, all of them are read; the authors' kernels
        refuse such maps and their module pads them with zeros that take part.

    Example:
        >>> NeighborhoodAttention(64, dilation=2).eval()(torch.zeros(1, 64, 5, 19)).shape
        torch.Size([1, 64, 5, 19])
    """

    spec = OperatorSpec(
        name="neighborhood_attention",
        title="NAT",
        source=Source(
            title="Neighborhood Attention Transformer",
            venue="CVPR",
            year=2023,
            url="https://arxiv.org/abs/2204.07143",
            equations="Eq. 2-4",
        ),
        reach="window",
        growth=1.0,
        implementations=("reference", "fused"),
        deviations=(
            "The attention of a block without its feed-forward part.",
            "A map with fewer rows or columns than a neighbourhood is read whole; the authors' kernels refuse it and "
            "their module pads it with zeros that take part.",
        ),
    )
    core: BiasedAttention

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int | None = None,
        kernel_size: int = 7,
        dilation: int = 1,
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        self.num_heads, width = heads_by_width("NeighborhoodAttention", channels, num_heads)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"NeighborhoodAttention: expected kernel_size >= 1 and odd, got {kernel_size!r}")
        if dilation < 1:
            raise ValueError(f"NeighborhoodAttention: expected dilation >= 1, got {dilation!r}")
        self.kernel_size, self.dilation = kernel_size, dilation
        self.norm = nn.LayerNorm(channels)
        self.query_key_value = projection(channels, 3 * channels)
        self.position = position_table(self.num_heads, kernel_size)
        self.core = BiasedAttention(width, implementation=implementation)
        self.out = projection(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The map with what its pixels read from their neighbourhoods."""
        self.expect_map(x)
        read = self._read_tiles(x) if self.core.fused else self._read_pixels(x)  # (B, h, H, W, d)
        out: Tensor = self.out(read.permute(0, 2, 3, 1, 4).flatten(3))  # (B, H, W, C)
        return x + out.permute(0, 3, 1, 2)

    def axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        """Rows and columns of a map."""
        return Axis(height, self.kernel_size, self.dilation), Axis(width, self.kernel_size, self.dilation)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values `(3, B, h, H, W, d)`."""
        projected: Tensor = self.query_key_value(self.norm(x.permute(0, 2, 3, 1)))  # (B, H, W, 3 C)
        return projected.reshape(*projected.shape[:3], 3, self.num_heads, -1).permute(3, 0, 4, 1, 2, 5)

    def bias(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Biases `(h, *)` of pairs with these offsets, which broadcast; minus infinity where one is minus one."""
        table = self.position[:, rows.clamp(min=0), columns.clamp(min=0)]
        return table.masked_fill((rows < 0) | (columns < 0), float("-inf"))

    def _neighbourhoods(self, height: int, width: int, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and columns, to be broadcast, that the pixels read, and the biases `(h, n_y, n_x, k_y k_x)`."""
        vertical, horizontal = self.axes(height, width)
        (above, up), (beside, left) = vertical.around(rows), horizontal.around(columns)
        bias = self.bias(up[:, None, :, None], left[None, :, None, :]).flatten(3)
        return above[:, None, :, None], beside[None, :, None, :], bias

    def _read_pixels(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        query, key, value = self.project(x)
        steps = [torch.arange(side, device=x.device) for side in (height, width)]
        rows, columns, bias = self._neighbourhoods(height, width, *steps)
        gathered = [part[:, :, rows, columns].flatten(4, 5).flatten(1, 3) for part in (key, value)]
        read: Tensor = self.core(query.flatten(1, 3)[:, :, None], *gathered, bias.flatten(0, 2)[:, None])
        return read.reshape(query.shape)

    def _read_tiles(self, x: Tensor) -> Tensor:
        vertical, horizontal = self.axes(*x.shape[-2:])
        query, key, value = self.project(x)
        (rows, above, up), (columns, beside, left) = (axis.tiled(x.device) for axis in (vertical, horizontal))
        bias = self.bias(up[:, None, :, None, :, None], left[None, :, None, :, None, :])
        bias = bias.flatten(5, 6).flatten(3, 4).flatten(0, 2)  # (h T, k k, s_y s_x)
        query = _cut(query, rows, columns)  # (B, h T, k k, d)
        read: Tensor = self.core(query, _cut(key, above, beside), _cut(value, above, beside), bias)
        size = self.kernel_size
        tiles = read.reshape(len(x), self.num_heads, vertical.tiles, horizontal.tiles, size, size, -1)
        padded = tiles.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3)  # (B, h, H', W', d)
        return padded[:, :, vertical.slots(x.device)[:, None], horizontal.slots(x.device)]

    def macs(self, height: int, width: int) -> int:
        """Four projections, and the products of queries with keys and of weights with values."""
        axes, pixels = self.axes(height, width), height * width
        if self.core.fused:
            pairs = axes[0].tiles * axes[1].tiles * self.kernel_size**2 * axes[0].span * axes[1].span
        else:
            pairs = pixels * axes[0].neighbours * axes[1].neighbours
        return 4 * pixels * self.channels**2 + 2 * pairs * self.channels

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, h, H, W)` of each head over the neighbourhood of `position`."""
        self.expect_position(x, position)
        row, column = position
        query, key, _ = self.project(x)
        places = [torch.tensor([at], device=x.device) for at in position]
        rows, columns, bias = self._neighbourhoods(x.shape[2], x.shape[3], *places)
        keys = key[:, :, rows, columns].flatten(2, 5)  # (B, h, k_y k_x, d)
        weights = self.core.weights(query[:, :, row, column, None], keys, bias[:, 0])  # (B, h, 1, k_y k_x)
        index = (rows * x.shape[3] + columns).flatten().expand(*weights.shape[:2], -1)
        spread = weights.new_zeros(*weights.shape[:2], x.shape[2] * x.shape[3])
        # Where a phase is short, its last pixel stands in for what does not exist, with weight zero.
        return spread.scatter_add(2, index, weights[:, :, 0]).reshape(*weights.shape[:2], *x.shape[-2:])


def _cut(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`(B, h, H, W, d)` at rows `(T_y, p)` and columns `(T_x, q)`: tiles `(B, h T_y T_x, p q, d)`."""
    return x[:, :, rows[:, None, :, None], columns[None, :, None, :]].flatten(4, 5).flatten(1, 3)
