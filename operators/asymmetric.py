"""Asymmetric non-local blocks: each pixel reads a pyramid of averages instead of all pixels (ANN)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from operators.anchor_attention import AnchorAttention
from operators.interface import (
    AttentionOperator,
    Implementation,
    OperatorSpec,
    PairOperator,
    Source,
)
from operators.layers import branch_width, conv_norm_relu
from operators.registry import register
from operators.scaled_attention import ScaledAttention

_SOURCE = Source(
    title="Asymmetric Non-local Neural Networks for Semantic Segmentation",
    venue="ICCV",
    year=2019,
    url="https://arxiv.org/abs/1908.07678",
    equations="Eq. 5-8, figure 4",
)
_DEVIATIONS = (
    "Queries and keys are normalised, rectified and scaled by 1/sqrt(d) as in the authors' code and mmsegmentation; "
    "the paper's equations show none of these: `scale`.",
    "The dropout behind the last normalisation belongs to the head.",
)


@register
class AsymmetricPyramid(AttentionOperator):
    """Asymmetric pyramid non-local block (APNB): non-local attention with pooled keys and values.

    Equation: `y = ReLU(BN(W [A(x, x); x]))` with the attention `A` to `S = 110` anchors of `AnchorAttention`.

    Args:
        channels: width `C` of the map.
        width: `d`, channels of queries, keys and values; by default `C / 2`.
        bins: sizes of the grids that keys and values are averaged over.
        share: whether queries and keys have one projection.
        scale: whether the products are divided by `sqrt(d)`.
        implementation: `"reference"` builds the `N x S` weights. `"fused"` computes them with
            `scaled_dot_product_attention`, and projects the values after pooling.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`; maps smaller than a grid are fine.

    Cost:
        `3 N C d + 2 N S d + 2 N C^2` multiply-accumulates (`N C d` more without `share`); fused,
        `2 N C d + S C d + 2 N S d + 2 N C^2`.

    Raises:
        ValueError: if an argument is outside its range, or `channels` is odd and `width` not given.

    Source:
        Zhu et al., "Asymmetric Non-local Neural Networks for Semantic Segmentation", ICCV 2019, arXiv:1908.07678,
        Eq. 5-8 and figure 4.

    Deviations:
        Queries and keys share one projection, as in the authors' code and mmsegmentation; the paper draws two
        (`share=False`). They are normalised, rectified and scaled (`scale`) as there, where the equations show none
        of it. The shared projection is computed once, there twice. The dropout behind the last normalisation belongs
        to the head.

    Example:
        >>> AsymmetricPyramid(16).eval()(torch.zeros(1, 16, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="asymmetric_pyramid",
        title="ANN (APNB)",
        source=_SOURCE,
        reach="global",
        growth=1.0,
        implementations=("reference", "fused"),
        deviations=(
            "Queries and keys share one projection as in the authors' code and mmsegmentation; the paper draws two: "
            "`share`.",
            *_DEVIATIONS,
        ),
    )
    core: ScaledAttention

    def __init__(
        self,
        channels: int,
        *,
        width: int | None = None,
        bins: Sequence[int] = (1, 3, 6, 8),
        share: bool = True,
        scale: bool = True,
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        width = branch_width("AsymmetricPyramid", channels, width, 2)
        self.stage = AnchorAttention(
            channels, channels, width, bins=bins, share=share, scale=scale, implementation=implementation
        )
        self.core = self.stage.core
        self.fuse = conv_norm_relu(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Fuses the map with what it reads from itself."""
        self.expect_map(x)
        fused: Tensor = self.fuse(torch.cat((self.stage(x, x), x), dim=1))
        return fused

    def macs(self, height: int, width: int) -> int:
        """Attention, its output convolution, and the fusing convolution."""
        pixels = height * width
        return self.stage.macs(pixels, pixels) + 2 * pixels * self.channels**2

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, 1, H, W)` over the pixels; an anchor's weight is spread evenly over its cell."""
        self.expect_position(x, position)
        return self.stage.pixel_weights(x, x, position)


class AsymmetricFusion(PairOperator):
    """Asymmetric fusion non-local block (AFNB): the high level reads a pyramid of averages of the low level.

    Equation: `y = BN(W [A(high, low); high])`, without ReLU, with the attention `A` to `S = 110` anchors of
    `AnchorAttention`.

    Args:
        channels: width `C` of the high level.
        low_channels: width `L` of the low level.
        width: `d`, channels of queries, keys and values; by default `C / 2`.
        bins: sizes of the grids that keys and values are averaged over.
        scale: whether the products are divided by `sqrt(d)`.
        implementation: as of `AsymmetricPyramid`.

    Shape:
        `(B, C, H, W), (B, L, H', W') -> (B, C, H, W)`; the sizes of the levels are free.

    Cost:
        `2 N C d + 2 M L d + 2 N S d + 2 N C^2` multiply-accumulates for `N` and `M` pixels; fused, `S` of the `M`
        pixels' values are projected.

    Raises:
        ValueError: if an argument is outside its range, or `channels` is odd and `width` not given.

    Source:
        Zhu et al., "Asymmetric Non-local Neural Networks for Semantic Segmentation", ICCV 2019, arXiv:1908.07678,
        Eq. 5-8 and figure 4.

    Deviations:
        Queries and keys are normalised, rectified and scaled (`scale`) as in the authors' code and mmsegmentation,
        where the equations show none of it. The dropout behind the normalisation belongs to the head.

    Example:
        >>> fusion = AsymmetricFusion(16, 8).eval()
        >>> fusion(torch.zeros(1, 16, 5, 7), torch.zeros(1, 8, 10, 14)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="asymmetric_fusion",
        title="ANN (AFNB)",
        source=_SOURCE,
        reach="global",
        growth=1.0,
        implementations=("reference", "fused"),
        deviations=_DEVIATIONS,
    )
    core: ScaledAttention

    def __init__(
        self,
        channels: int,
        low_channels: int,
        *,
        width: int | None = None,
        bins: Sequence[int] = (1, 3, 6, 8),
        scale: bool = True,
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels, low_channels)
        width = branch_width("AsymmetricFusion", channels, width, 2)
        self.stage = AnchorAttention(
            channels, low_channels, width, bins=bins, share=False, scale=scale, implementation=implementation
        )
        self.core = self.stage.core
        conv = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.fuse = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(channels)))

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """Fuses the high level with what it reads from the low level."""
        self.expect_maps(high, low)
        fused: Tensor = self.fuse(torch.cat((self.stage(high, low), high), dim=1))
        return fused

    def macs(self, high: tuple[int, int], low: tuple[int, int]) -> int:
        """Attention, its output convolution, and the fusing convolution."""
        pixels, low_pixels = high[0] * high[1], low[0] * low[1]
        return self.stage.macs(pixels, low_pixels) + 2 * pixels * self.channels**2
