"""Pyramid pooling module of PSPNet: context from averages over coarse grids, without attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source, divide_channels
from operators.registry import register


@register
class PyramidPooling(AttentionOperator):
    """Pyramid pooling module of PSPNet: averages over grids of several sizes, fused with the features.

    Equation: `y = f([x, up(g_1(pool_1(x))), ..., up(g_n(pool_n(x)))])` where `pool_b` averages over a `b x b`
    grid, `g_b` is a 1x1 convolution to `C / reduction` channels with batch normalisation and ReLU, `up`
    resizes bilinearly to the map, and `f` is a 3x3 convolution back to `C` channels with batch normalisation
    and ReLU.

    In training, the batch normalisation behind the 1x1 grid needs two images: it raises PyTorch's
    `ValueError` for one.

    Args:
        channels: width `C` of the map.
        bins: sizes of the grids.
        reduction: each grid has `C / reduction` channels; by default the number of grids, so that together
            they have `C`.
        align_corners: how the resize lays out the grid.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`; maps smaller than a grid are fine.

    Cost:
        `C^2 (9 N (1 + n / reduction) + sum_b b^2 / reduction)` multiply-accumulates for `n` grids.

    Raises:
        ValueError: if `bins` is empty or holds a size below 1, or `reduction` does not divide `channels`.

    Source:
        Zhao et al., Pyramid Scene Parsing Network, CVPR 2017, section 3.2, figure 3 (c).

    Deviations:
        The corners are not aligned, as in mmsegmentation; the authors align them (`align_corners=True`). The
        fusing convolution, which the paper draws behind the concatenation, maps to `C` channels instead of
        512.

    Example:
        >>> PyramidPooling(16).eval()(torch.zeros(1, 16, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="pyramid_pooling",
        title="PSPNet",
        source=Source(
            title="Pyramid Scene Parsing Network",
            venue="CVPR",
            year=2017,
            url="https://arxiv.org/abs/1612.01105",
            equations="section 3.2, figure 3 (c)",
        ),
        reach="global",
        growth=1.0,
        kind="context",
        deviations=(
            "The resize does not align corners, as in mmsegmentation; the authors align them.",
            "The fusing 3x3 convolution maps to C channels instead of 512.",
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        bins: tuple[int, ...] = (1, 2, 3, 6),
        reduction: int | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__(channels)
        owner = type(self).__name__
        if not bins or min(bins) < 1:
            raise ValueError(f"{owner}: expected bins >= 1, got {tuple(bins)}")
        self.bins = tuple(bins)
        self.align_corners = align_corners
        self.width = divide_channels(owner, channels, len(self.bins) if reduction is None else reduction)
        self.grids = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size),
                nn.Conv2d(channels, self.width, 1, bias=False),
                nn.BatchNorm2d(self.width),
                nn.ReLU(inplace=True),
            )
            for size in self.bins
        )
        self.fuse = nn.Sequential(
            nn.Conv2d(channels + len(self.bins) * self.width, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Concatenates the features with the resized grids and fuses them."""
        self.expect_map(x)
        size = x.shape[-2:]
        context = [
            F.interpolate(grid(x), size=size, mode="bilinear", align_corners=self.align_corners) for grid in self.grids
        ]
        fused: Tensor = self.fuse(torch.cat([x, *context], dim=1))  # (B, C, H, W)
        return fused

    def macs(self, height: int, width: int) -> int:
        """A 1x1 convolution on each grid, and the fusing 3x3 convolution on the map."""
        grids = sum(size**2 for size in self.bins) * self.channels * self.width
        fused = self.channels + len(self.bins) * self.width
        return grids + height * width * 9 * fused * self.channels
