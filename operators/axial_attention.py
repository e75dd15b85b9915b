"""Axial attention: every pixel reads its column, then its row, with terms for relative positions (Axial-DeepLab)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source, merge_positions
from operators.layers import branch_width, conv_norm_relu
from operators.registry import register

Axis = Literal["height", "width"]


class AxialLayer(nn.Module):
    """Position-sensitive attention along one axis: each pixel reads the pixels of its line.

    Equation, for the positions `o` and `p` of a line, in each head::

        y_o = BN(sum_p a_op v_p) + BN(sum_p a_op r^v_(p - o))
        a_o = softmax_p(BN(q_o . k_p) + BN(q_o . r^q_(p - o)) + BN(k_p . r^k_(p - o)))

    with `[q; k; v] = BN(W x)`. Queries and keys have half the width of the values. The embeddings `r` of offsets are
    shared by heads and lines; those beyond `span - 1` are clamped to it.

    Args:
        width: `E`, channels of the map.
        axis: `"height"` reads columns, `"width"` reads rows.
        num_heads: number `h` of heads.
        span: length of the longest line whose offsets all have embeddings of their own.

    Shape:
        `(B, E, H, W) -> (B, E, H, W)`. Inside, a map is `(B, M, h, L, d)`: `M` lines of length `L`.

    Cost:
        `2 N E^2 + 7/2 N L E` multiply-accumulates.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> AxialLayer(16, axis="width").eval()(torch.randn(2, 16, 5, 7)).shape
        torch.Size([2, 16, 5, 7])
    """

    def __init__(self, width: int, *, axis: Axis, num_heads: int = 8, span: int = 56) -> None:
        super().__init__()
        if axis not in get_args(Axis):
            raise ValueError(f"AxialLayer: expected axis in {get_args(Axis)}, got {axis!r}")
        if num_heads < 1 or width % (2 * num_heads):
            raise ValueError(f"AxialLayer: expected a width divisible by 2 * num_heads, got {width} and {num_heads!r}")
        if span < 1:
            raise ValueError(f"AxialLayer: expected span >= 1, got {span!r}")
        self.width, self.axis, self.num_heads, self.span = width, axis, num_heads, span
        head = width // num_heads
        self.parts = [head // 2, head // 2, head]
        self.project = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.project_norm = nn.BatchNorm1d(2 * width)
        self.relative = nn.Parameter(torch.empty(2 * head, 2 * span - 1))
        self.logit_norm = nn.BatchNorm2d(3 * num_heads)
        self.out_norm = nn.BatchNorm2d(2 * width)
        nn.init.normal_(self.project.weight, std=width**-0.5)
        nn.init.normal_(self.relative, std=head**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """What the pixels read from their lines."""
        query, key, value = self._project(x)
        of_query, of_key, of_value = self._embeddings(value.shape[3])
        weights = self._weights(query, key, of_query, of_key)
        content = torch.matmul(weights, value)  # (B, M, h, L, d)
        position = self._by_position(weights, of_value.permute(1, 2, 0))  # (B, M, h, L, d)
        both = torch.cat((self._to_map(content), self._to_map(position)), dim=1)  # (B, 2E, H, W)
        of_content, of_position = self.out_norm(both).chunk(2, dim=1)
        return torch.add(of_content, of_position)

    def weights(self, x: Tensor) -> Tensor:
        """Weights `(B, M, h, L, L)` of the pixels of each line over the line; each row sums to one."""
        query, key, value = self._project(x)
        of_query, of_key, _ = self._embeddings(value.shape[3])
        return self._weights(query, key, of_query, of_key)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values `(B, M, h, L, d)`."""
        # On CPU, maps one pixel wide, BatchNorm2d misreads gradients that come back permuted; BatchNorm1d does not.
        projected = self.project_norm(merge_positions(self.project(x)))  # (B, 2E, N)
        heads = projected.reshape(len(x), self.num_heads, -1, *x.shape[-2:])  # (B, h, 2d, H, W)
        order = (0, 4, 1, 3, 2) if self.axis == "height" else (0, 3, 1, 4, 2)
        return torch.split(heads.permute(order), self.parts, dim=4)

    def _to_map(self, lines: Tensor) -> Tensor:
        order = (0, 2, 4, 3, 1) if self.axis == "height" else (0, 2, 4, 1, 3)
        return lines.permute(order).flatten(1, 2)

    def _embeddings(self, length: int) -> tuple[Tensor, ...]:
        """Embeddings `(d, L, L)` of the offset from position `o` to position `p`, for queries, keys and values."""
        positions = torch.arange(length, device=self.relative.device)
        offsets = (positions - positions.unsqueeze(1)).clamp(1 - self.span, self.span - 1)  # (L, L)
        return torch.split(self.relative[:, offsets + self.span - 1], self.parts, dim=0)

    def _weights(self, query: Tensor, key: Tensor, of_query: Tensor, of_key: Tensor) -> Tensor:
        content = torch.matmul(query, key.transpose(3, 4))  # (B, M, h, L, L)
        from_query = self._by_position(query, of_query.permute(1, 0, 2))  # (B, M, h, L, L)
        from_key = self._by_position(key, of_key.permute(2, 0, 1)).transpose(3, 4)  # (B, M, h, L, L)
        terms = torch.cat((content, from_query, from_key), dim=2).flatten(0, 1)  # (B M, 3h, L, L)
        logits = torch.unflatten(self.logit_norm(terms), 1, (3, self.num_heads)).sum(1)  # (B M, h, L, L)
        return torch.unflatten(torch.softmax(logits, dim=3), 0, content.shape[:2])

    @staticmethod
    def _by_position(lines: Tensor, matrices: Tensor) -> Tensor:
        """Row `l` of all lines `(B, M, h, L, d)` by matrix `l` of `(L, d, n)`."""
        rows = lines.permute(3, 0, 1, 2, 4).flatten(1, 3)  # (L, B M h, d)
        products = torch.unflatten(torch.bmm(rows, matrices), 1, lines.shape[:3])  # (L, B, M, h, n)
        return products.permute(1, 2, 3, 0, 4)

    def macs(self, height: int, width: int) -> int:
        """`2 N E^2 + 7/2 N L E`: half of `E` in each of three logits, all of it in both sums."""
        pixels, length = height * width, height if self.axis == "height" else width
        return 2 * pixels * self.width**2 + 7 * pixels * length * self.width // 2


@register
class AxialAttention(AttentionOperator):
    """Axial-attention block: a bottleneck in which each pixel reads its column, then its row.

    Equation: `y = ReLU(x + BN(W_u ReLU(A_width(A_height(ReLU(BN(W_d x)))))))`, with the position-sensitive layers `A`
    of `AxialLayer`. The two of them reach every pixel.

    Args:
        channels: width `C` of the map.
        width: `E`, channels inside the bottleneck; by default `C / 2`.
        num_heads: number `h` of heads.
        span: length of the longest line whose offsets all have embeddings of their own; offsets beyond are clamped.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`; lines longer than `span` are fine.

    Cost:
        `2 N C E + 4 N E^2 + 7/2 N (H + W) E` multiply-accumulates.

    Raises:
        ValueError: if an argument is outside its range, `channels` is odd and `width` not given, or `2 num_heads` does
            not divide the width.

    Source:
        Wang et al., "Axial-DeepLab: Stand-Alone Axial-Attention for Panoptic Segmentation", ECCV 2020,
        arXiv:2003.07853, Eq. 3 and 4, figure 2.

    Deviations:
        The block is the one that the paper draws: 1x1 convolutions in front and behind, residual and ReLU. Queries,
        keys and values, each of the three logits and both sums are batch normalised as in the authors' code; the
        equations show none of it. The last normalisation starts at zero as there. Offsets beyond `span` are clamped,
        so that any size can be read; the authors build their layers for one size of map. All three embeddings are of
        the offset from `o` to `p` as in the equations; the authors' code mirrors those of queries and values.

    Example:
        >>> operator = AxialAttention(32).eval()
        >>> operator.attention(torch.randn(2, 32, 5, 7), (0, 0)).shape
        torch.Size([2, 8, 5, 7])
    """

    spec = OperatorSpec(
        name="axial_attention",
        title="Axial-DeepLab",
        source=Source(
            title="Axial-DeepLab: Stand-Alone Axial-Attention for Panoptic Segmentation",
            venue="ECCV",
            year=2020,
            url="https://arxiv.org/abs/2003.07853",
            equations="Eq. 3 and 4, figure 2",
        ),
        reach="global",
        growth=1.5,
        deviations=(
            "Projections, each of the three logits and both sums are batch normalised as in the authors' code; the "
            "equations show none of it.",
            "Offsets beyond the span are clamped; the authors build their layers for one size of map: `span`.",
            "All embeddings are of the offset from the reading to the read position (paper); the authors' code mirrors "
            "those of queries and values.",
        ),
    )
    core: nn.Sequential

    def __init__(self, channels: int, *, width: int | None = None, num_heads: int = 8, span: int = 56) -> None:
        super().__init__(channels)
        self.width = branch_width("AxialAttention", channels, width, 2)
        self.height_layer = AxialLayer(self.width, axis="height", num_heads=num_heads, span=span)
        self.width_layer = AxialLayer(self.width, axis="width", num_heads=num_heads, span=span)
        self.core = nn.Sequential(self.height_layer, self.width_layer)
        self.down = conv_norm_relu(channels, self.width)
        conv = nn.Conv2d(self.width, channels, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        self.up = nn.Sequential(OrderedDict(conv=conv, norm=norm))

    def forward(self, x: Tensor) -> Tensor:
        """Bottleneck, both layers, residual and ReLU."""
        self.expect_map(x)
        return F.relu(x + self.up(F.relu(self.core(self.down(x)))))

    def macs(self, height: int, width: int) -> int:
        """`2 N C E + 4 N E^2 + 7/2 N (H + W) E`."""
        layers = self.height_layer.macs(height, width) + self.width_layer.macs(height, width)
        return 2 * height * width * self.channels * self.width + layers

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, h, H, W)`, which sum to one: a head of the second layer times the mean of the first's heads.

        Between the layers a projection mixes all heads, so that a head of the second reads all heads of the first.
        """
        self.expect_position(x, position)
        row, column = position
        inner = self.down(x)
        columns = self.height_layer.weights(inner)[:, :, :, row].mean(2)  # (B, W, H)
        rows = self.width_layer.weights(self.height_layer(inner))[:, row, :, column]  # (B, h, W)
        return rows.unsqueeze(2) * columns.transpose(1, 2).unsqueeze(1)
