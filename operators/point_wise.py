"""Point-wise spatial attention of PSANet: each position predicts its own mask over relative positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source, merge_positions
from operators.layers import branch_width, conv_macs, conv_norm_relu, interpolation_matrix, output_channels, resize
from operators.registry import register

Direction = Literal["collect", "distribute"]
PSAType = Literal["collect", "distribute", "bi-direction"]


class PointWiseCore(nn.Module):
    """Turns predicted masks into weights between all pairs of positions and reads the features with them.

    Equation: `z_t = sum_s w_st x_s / Z` with `w_st = softmax_s(a_st)`. A position `i` predicts `M_h x M_w` scores
    `H_i` around itself: `a_st = H_t[s - t]` where targets collect, `a_st = H_s[t - s]` where sources distribute,
    and `a_st = 0` outside the mask. Compact scores belong to absolute positions: `a_st = H_t[s]` or `H_s[t]`.

    Args:
        directions: of the features and scores that `forward` takes, in order.
        mask_size: `(M_h, M_w)`.
        compact: whether scores belong to absolute positions.
        softmax: whether the scores are normalised over the sources; otherwise they are the weights.
        normalization_factor: `Z`.

    Shape:
        For each direction features `(B, E, h, w)` and scores `(B, M_h M_w, h, w)`; together `(B, directions E, h, w)`.

    Cost:
        `(h w)^2 E` multiply-accumulates for each direction.
    """

    def __init__(
        self,
        directions: Sequence[Direction],
        mask_size: tuple[int, int],
        *,
        compact: bool,
        softmax: bool,
        normalization_factor: float,
    ) -> None:
        super().__init__()
        self.directions = tuple(directions)
        self.mask_size = mask_size
        self.compact = compact
        self.softmax = softmax
        self.normalization_factor = normalization_factor

    def forward(self, *features_and_scores: Tensor) -> Tensor:
        """What each direction reads, one behind the other."""
        features, scores = features_and_scores[::2], features_and_scores[1::2]
        read = []
        for direction, x, score in zip(self.directions, features, scores, strict=True):
            weights = self.weights(direction, score)  # (B, sources, targets)
            read.append(torch.bmm(merge_positions(x), weights).reshape(x.shape))
        return torch.cat(read, dim=1)

    def weights(self, direction: Direction, scores: Tensor) -> Tensor:
        """Weights `(B, sources, targets)`."""
        height, width = scores.shape[-2:]
        flat = merge_positions(scores)  # (B, M, N)
        pairs = flat if self.compact else self._around_each(flat, height, width)  # (B, N, N)
        if direction == "distribute":
            pairs = pairs.transpose(1, 2)
        weights = torch.softmax(pairs, dim=1) if self.softmax else pairs
        return weights / self.normalization_factor

    def _around_each(self, flat: Tensor, height: int, width: int) -> Tensor:
        """Score `(B, N, N)` that each position (last) predicts for every other one, zero outside its mask."""
        rows, rows_inside = self._offsets(height, self.mask_size[0], flat.device)
        columns, columns_inside = self._offsets(width, self.mask_size[1], flat.device)
        positions = height * width
        index = rows[:, None, :, None] * self.mask_size[1] + columns[None, :, None, :]  # (h, w, h, w)
        inside = rows_inside[:, None, :, None] & columns_inside[None, :, None, :]
        index, inside = index.reshape(1, positions, positions), inside.reshape(1, positions, positions)
        return flat.gather(1, index.expand(len(flat), -1, -1)).masked_fill(~inside, 0.0)

    @staticmethod
    def _offsets(length: int, mask: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Index into a mask axis for each (other, own) coordinate, and whether the mask has it."""
        place = torch.arange(length, device=device)
        offset = place[:, None] - place[None, :] + (mask - 1) // 2
        return offset.clamp(0, mask - 1), (offset >= 0) & (offset < mask)


class _Branch(nn.Module):
    """Reduction of the features, and the two layers that predict scores from them."""

    def __init__(self, channels: int, width: int, scores: int) -> None:
        super().__init__()
        self.reduce = conv_norm_relu(channels, width)
        self.adapt = conv_norm_relu(width, width)
        self.score = nn.Conv2d(width, scores, 1, bias=False)


@register
class PointWiseSpatialAttention(AttentionOperator):
    """Point-wise spatial attention of PSANet: weights over relative positions, predicted by each position itself.

    Equation: `y = f([x, up(g([z^c, z^d]))])`, where `z^c` is collected and `z^d` distributed as in `PointWiseCore`
    from features that a 1x1 convolution reduces to `E` channels, `g` is a 1x1 convolution back to `C` channels,
    `f` a 3x3 convolution of the concatenation, each with batch normalisation and ReLU, and `up` a bilinear resize.

    The size of the mask is fixed when the operator is built; maps of any size are read. A position outside the mask
    has score zero, so that under the softmax it still has a weight.

    Args:
        channels: width `C` of the map.
        psa_type: `"collect"`, `"distribute"`, or both (`"bi-direction"`).
        mask_size: height and width of the mask; `(2h - 1, 2w - 1)` covers an `h x w` map from everywhere. A
            compact mask has the size of the map.
        width: channels `E` of the attended features; by default `C / 4`.
        out_channels: channels of the output; by default `C`.
        compact: scores for absolute positions of a map of exactly `mask_size`.
        shrink_factor: the attention runs on a map that is so many times smaller.
        softmax: whether weights are normalised over the sources.
        normalization_factor: divides the weights; `None` is the number of scores of a position.
        proj_padding: zero padding of the 1x1 convolution `g`; mmsegmentation has 1.
        align_corners: how `up` lays out the grid where `shrink_factor` is 1 and `proj_padding` is not 0.

    Shape:
        `(B, C, H, W) -> (B, out_channels, H, W)`.

    Cost:
        With `n = h w` positions of the smaller map, `D` directions and `M` scores,
        `D (N C E + n E^2 + n M E + n^2 E) + (h + 2p)(w + 2p) D E C + 18 N C out_channels` multiply-accumulates.

    Raises:
        ValueError: if an argument is outside its range, or a compact mask does not have the size of the smaller map.

    Source:
        Zhao et al., PSANet: Point-wise Spatial Attention Network for Scene Parsing, ECCV 2018, section 3, figures 2
        and 3.

    Deviations:
        The attention runs on a map of half the size, as in the authors' code and mmsegmentation; the paper's equations
        do not shrink (`shrink_factor=1`). Corners are aligned where the factor divides neither side, as in
        mmsegmentation; the authors' code always aligns them, and takes odd sizes alone. mmsegmentation pads the 1x1
        convolution `g` by 1 (`proj_padding=1`), and the resize squeezes the padding into the map; authors and default
        do not. mmsegmentation takes compact scores of `"collect"` for the authors' `"distribute"`. The mask is the
        authors'.

    Example:
        >>> PointWiseSpatialAttention(16, mask_size=(5, 7)).eval()(torch.zeros(1, 16, 5, 8)).shape
        torch.Size([1, 16, 5, 8])
    """

    spec = OperatorSpec(
        name="point_wise_spatial",
        title="PSANet",
        source=Source(
            title="PSANet: Point-wise Spatial Attention Network for Scene Parsing",
            venue="ECCV",
            year=2018,
            url="https://hszhao.github.io/projects/psanet",
            equations="section 3, figures 2 and 3",
        ),
        reach="global",
        growth=2.0,
        deviations=(
            "The attention runs on a map of half the size (authors' code, mmsegmentation), unlike the equations: "
            "`shrink_factor`.",
            "The 1x1 convolution behind the attention is not padded; mmsegmentation pads it: `proj_padding=1`.",
        ),
        expected_failures={
            "reach": "Shrinking an odd size by 2 with aligned corners, as the authors do, reads every second row and "
            "column of the whole map: the attention does not see the pixels between them.",
        },
    )
    core: PointWiseCore

    def __init__(
        self,
        channels: int,
        *,
        psa_type: PSAType = "bi-direction",
        mask_size: tuple[int, int] = (59, 59),
        width: int | None = None,
        out_channels: int | None = None,
        compact: bool = False,
        shrink_factor: int = 2,
        softmax: bool = True,
        normalization_factor: float | None = 1.0,
        proj_padding: int = 0,
        align_corners: bool = False,
    ) -> None:
        super().__init__(channels)
        owner = type(self).__name__
        if psa_type not in get_args(PSAType):
            raise ValueError(f"{owner}: expected psa_type in {get_args(PSAType)}, got {psa_type!r}")
        if len(mask_size) != 2 or min(mask_size) < 1:
            raise ValueError(f"{owner}: expected a mask_size of two sides >= 1, got {tuple(mask_size)}")
        for name, value, least in (("shrink_factor", shrink_factor, 1), ("proj_padding", proj_padding, 0)):
            if value < least:
                raise ValueError(f"{owner}: expected {name} >= {least}, got {value!r}")
        if normalization_factor is not None and not normalization_factor > 0:
            raise ValueError(f"{owner}: expected normalization_factor > 0, got {normalization_factor!r}")
        scores = math.prod(mask_size)
        directions = get_args(Direction) if psa_type == "bi-direction" else (psa_type,)
        self.shrink_factor = shrink_factor
        self.align_corners = align_corners
        self.width = branch_width(owner, channels, width)
        self.branches = nn.ModuleDict({name: _Branch(channels, self.width, scores) for name in directions})
        self.core = PointWiseCore(
            directions,
            (mask_size[0], mask_size[1]),
            compact=compact,
            softmax=softmax,
            normalization_factor=float(scores if normalization_factor is None else normalization_factor),
        )
        self.proj = conv_norm_relu(len(directions) * self.width, channels, padding=proj_padding)
        self.proj_padding = proj_padding
        self.fuse = conv_norm_relu(2 * channels, output_channels(owner, channels, out_channels), 3)

    def forward(self, x: Tensor) -> Tensor:
        """Reads on the smaller map, resizes, and fuses with the features."""
        self.expect_map(x)
        read = self.proj(self.core(*self._maps(x)))
        context = resize(read, x.shape[-2:], align_corners=self._aligned(*x.shape[-2:]))
        fused: Tensor = self.fuse(torch.cat([x, context], dim=1))  # (B, out_channels, H, W)
        return fused

    def _maps(self, x: Tensor) -> list[Tensor]:
        """Reduced features and scores of each direction, on the smaller map."""
        size = self._shrunk(*x.shape[-2:])
        if self.core.compact and size != self.core.mask_size:
            raise ValueError(
                f"{type(self).__name__}: expected a map that shrinks to the compact mask {self.core.mask_size}, "
                f"got {tuple(x.shape[-2:])}, which shrinks to {size}"
            )
        maps = []
        for branch in self._branches():
            features = resize(branch.reduce(x), size, align_corners=self._aligned(*x.shape[-2:]))
            maps += [features, branch.score(branch.adapt(features))]
        return maps

    def _branches(self) -> list[_Branch]:
        return [branch for branch in self.branches.values() if isinstance(branch, _Branch)]

    def _aligned(self, height: int, width: int) -> bool:
        """Whether resizing aligns the corners: a factor that divides neither side keeps the outermost pixels."""
        if self.shrink_factor == 1:
            return self.align_corners
        return bool(height % self.shrink_factor and width % self.shrink_factor)

    def _shrunk(self, height: int, width: int) -> tuple[int, int]:
        """Size of the smaller map."""
        extra = 1 if self._aligned(height, width) else 0
        rows, columns = ((side - extra) // self.shrink_factor + extra for side in (height, width))
        return max(rows, 1), max(columns, 1)

    def macs(self, height: int, width: int) -> int:
        """Reductions and fusion on the map; scores, products and `g` on the smaller one."""
        pixels = height * width
        rows, columns = self._shrunk(height, width)
        positions = rows * columns
        total = conv_macs(self.fuse, pixels)
        for branch in self._branches():
            total += conv_macs(branch.reduce, pixels) + positions**2 * self.width
            total += conv_macs(branch.adapt, positions) + conv_macs(branch.score, positions)
        padded = (rows + 2 * self.proj_padding) * (columns + 2 * self.proj_padding)
        return total + conv_macs(self.proj, padded)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, directions, H, W)` with which the context at `position` reads the reduced features.

        Both resizes are in them: down to the smaller map, and up to `position`.
        """
        self.expect_position(x, position)
        height, width = x.shape[-2:]
        rows, columns = self._shrunk(height, width)
        aligned = self._aligned(height, width)
        row_up, row_down = self._axis(height, rows, aligned, x)
        column_up, column_down = self._axis(width, columns, aligned, x)
        targets = torch.outer(row_up[position[0]], column_up[position[1]]).reshape(-1)  # (n,)
        read = []
        for direction, scores in zip(self.core.directions, self._maps(x)[1::2], strict=True):
            sources = torch.matmul(self.core.weights(direction, scores), targets)  # (B, n)
            small = sources.reshape(-1, rows, columns)  # (B, h, w)
            read.append(row_down.t() @ small @ column_down)  # (B, H, W)
        return torch.stack(read, dim=1)

    def _axis(self, length: int, small: int, aligned: bool, like: Tensor) -> tuple[Tensor, Tensor]:
        """Matrices of both resizes along one axis: up `(length, small)`, without the padding of `g`, and down."""
        padding = self.proj_padding
        up = interpolation_matrix(small + 2 * padding, length, like, align_corners=aligned)
        down = interpolation_matrix(length, small, like, align_corners=aligned)
        return up[:, padding : padding + small], down
