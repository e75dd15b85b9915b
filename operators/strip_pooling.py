"""Strip pooling of SPNet: averages over whole rows and columns, as a gate and beside averages over cells."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source
from operators.layers import branch_width, conv_norm_relu, resize
from operators.registry import register


def _source(equations: str) -> Source:
    return Source(
        title="Strip Pooling: Rethinking Spatial Pooling for Scene Parsing",
        venue="CVPR",
        year=2020,
        url="https://arxiv.org/abs/2003.13328",
        equations=equations,
    )


def _conv_norm(
    in_channels: int, out_channels: int, kernel_size: tuple[int, int], *, bias: bool = False
) -> nn.Sequential:
    padding = (kernel_size[0] // 2, kernel_size[1] // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels)))


class StripSum(nn.Module):
    """Averages of rows and of columns, each convolved along its line and normalised, summed at each pixel.

    Equation: `y_ij = BN(w_r * r)_i + BN(w_c * c)_j` with the average `r_i` of row `i` and `c_j` of column `j`, and
    kernels of three.

    Args:
        channels: width of the map.
        bias: whether the convolutions have biases.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `3 (H + W) C^2` multiply-accumulates.
    """

    def __init__(self, channels: int, *, bias: bool) -> None:
        super().__init__()
        self.rows = _conv_norm(channels, channels, (3, 1), bias=bias)
        self.columns = _conv_norm(channels, channels, (1, 3), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """The sums."""
        rows: Tensor = self.rows(x.mean(3, keepdim=True))  # (B, C, H, 1)
        columns: Tensor = self.columns(x.mean(2, keepdim=True))  # (B, C, 1, W)
        return rows + columns


@register
class StripPooling(AttentionOperator):
    """Strip pooling module (SPM): scales each pixel by a gate that sees its row and its column.

    Equation: `y = x * sigmoid(W ReLU(s) + b)` with the sums `s` of `StripSum`.

    Args:
        channels: width `C` of the map.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `N C^2 + 3 (H + W) C^2` multiply-accumulates.

    Raises:
        ValueError: if `channels` is below 1.

    Source:
        Hou et al., Strip Pooling: Rethinking Spatial Pooling for Scene Parsing, CVPR 2020, arXiv:2003.13328,
        equations (2)-(5), figure 2.

    Deviations:
        The normalisations of both strips and the ReLU on their sum are those of the authors' code; the paper's
        equations have neither. The convolutions of the strips have biases, which the normalisations take out again;
        the authors' code has none.

    Example:
        >>> StripPooling(16).eval()(torch.zeros(1, 16, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="strip_pooling",
        title="SPNet (SPM)",
        source=_source("(2)-(5), figure 2"),
        reach="axis",
        growth=1.0,
        deviations=(
            "Strips are normalised and their sum is rectified (authors); the equations have neither.",
            "Convolutions of strips have biases, without effect behind the normalisation; the authors' have none.",
        ),
    )

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.strips = StripSum(channels, bias=True)
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scales the pixels."""
        self.expect_map(x)
        return x * torch.sigmoid(self.gate(F.relu(self.strips(x))))

    def macs(self, height: int, width: int) -> int:
        """A 1x1 convolution of the map, and one of three taps along each strip."""
        return (height * width + 3 * (height + width)) * self.channels**2


class PyramidSum(nn.Module):
    """The map and its averages over two grids, each convolved and normalised, summed at each pixel.

    Equation: `y = BN(w_0 * x) + sum_b up(BN(w_b * pool_b(x)))`, where `pool_b` averages over a `b x b` grid, `up`
    resizes bilinearly and the kernels are `3 x 3`.

    Args:
        channels: width of the map.
        bins: sizes of the grids.
        align_corners: how the resize lays out the grids.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `9 (N + sum_b b^2) C^2` multiply-accumulates.
    """

    def __init__(self, channels: int, bins: Sequence[int], *, align_corners: bool) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.align_corners = align_corners
        self.local = _conv_norm(channels, channels, (3, 3))
        self.grids = nn.ModuleList(_conv_norm(channels, channels, (3, 3)) for _ in self.bins)

    def forward(self, x: Tensor) -> Tensor:
        """The sums."""
        total: Tensor = self.local(x)
        for size, grid in zip(self.bins, self.grids, strict=True):
            pooled = grid(F.adaptive_avg_pool2d(x, size))
            total = total + resize(pooled, x.shape[-2:], align_corners=self.align_corners)
        return total


@register
class MixedPooling(AttentionOperator):
    """Mixed pooling module (MPM): averages over strips for long reach, over cells for short reach, in a bottleneck.

    Equation: `y = ReLU(x + BN(W [f(ReLU(p(u))); g(ReLU(s(v)))]))`, with `u` and `v` two reductions of `x`, the sums `p`
    of `PyramidSum` and `s` of `StripSum`, and 3x3 convolutions `f` and `g`; each reduction and each of `f` and `g` has
    normalisation and ReLU.

    Args:
        channels: width `C` of the map.
        width: `d`, channels of each branch; by default `C / 4`.
        bins: sizes of the grids.
        align_corners: how the resize lays out the grids.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`; maps smaller than a grid are fine.

    Cost:
        `4 N C d + (27 N + 3 (H + W) + 9 sum_b b^2) d^2` multiply-accumulates.

    Raises:
        ValueError: if `bins` is empty or holds a size below 1, `width` is below 1, or 4 does not divide `channels` and
            `width` is not given.

    Source:
        Hou et al., Strip Pooling: Rethinking Spatial Pooling for Scene Parsing, CVPR 2020, arXiv:2003.13328, section
        3.2, figure 3.

    Deviations:
        The grids are 20x20 and 12x12, their resize aligns corners, and the reduction is to a quarter of the channels
        for each branch, as in the authors' code. SPNet's head has two such modules in a row, on 1024 channels.

    Example:
        >>> MixedPooling(16).eval()(torch.zeros(1, 16, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="mixed_pooling",
        title="SPNet (MPM)",
        source=_source("section 3.2, figure 3"),
        reach="axis",
        growth=1.0,
        kind="context",
        deviations=(
            "Grids of 20x20 and 12x12, aligned corners and branches of C/4 channels, as in the authors' code.",
            "SPNet's head has two of these modules in a row.",
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        width: int | None = None,
        bins: Sequence[int] = (20, 12),
        align_corners: bool = True,
    ) -> None:
        super().__init__(channels)
        owner = type(self).__name__
        if not bins or min(bins) < 1:
            raise ValueError(f"{owner}: expected bins >= 1, got {tuple(bins)}")
        self.width = branch_width(owner, channels, width)
        self.cell_reduction = conv_norm_relu(channels, self.width)
        self.strip_reduction = conv_norm_relu(channels, self.width)
        self.cells = PyramidSum(self.width, bins, align_corners=align_corners)
        self.strips = StripSum(self.width, bias=False)
        self.cell_fusion = conv_norm_relu(self.width, self.width, 3)
        self.strip_fusion = conv_norm_relu(self.width, self.width, 3)
        self.expand = _conv_norm(2 * self.width, channels, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Adds what both branches pool."""
        self.expect_map(x)
        cells = self.cell_fusion(F.relu(self.cells(self.cell_reduction(x))))  # (B, d, H, W)
        strips = self.strip_fusion(F.relu(self.strips(self.strip_reduction(x))))  # (B, d, H, W)
        return F.relu(x + self.expand(torch.cat((cells, strips), dim=1)))

    def macs(self, height: int, width: int) -> int:
        """Reductions and expansion, three 3x3 convolutions of the map, those of the grids, and those of the strips."""
        pixels = height * width
        taps = 27 * pixels + 3 * (height + width) + 9 * sum(size**2 for size in self.cells.bins)
        return 4 * pixels * self.channels * self.width + taps * self.width**2
