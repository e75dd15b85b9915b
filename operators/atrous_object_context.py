"""Atrous spatial pyramid of OCNet, with object context pooling in the place of the mean of the map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, Implementation, OperatorSpec
from operators.layers import branch_width, conv_macs, conv_norm_relu, output_channels
from operators.object_context_pooling import DROPOUT, SOURCE, ObjectContextPooling
from operators.registry import register
from operators.scaled_attention import ScaledAttention

_SLOPE = 0.01
"""Of the authors' leaky ReLUs."""


@register
class AtrousObjectContext(AttentionOperator):
    """ASP-OC: object context beside a 1x1 and three dilated convolutions of the map, fused.

    Equation: `y = f([r(BN(P(g(x)))), h_0(x), h_1(x), h_2(x), h_3(x)])` with `P` of `ObjectContextPooling`, a 3x3
    convolution `g`, a 1x1 convolution `h_0` and 3x3 convolutions `h_i` of dilation `r_i`, all to `E` channels, and a
    1x1 convolution `f`; each convolution has batch normalisation and ReLU. `r` is a leaky ReLU of slope 0.01.

    Args:
        channels: width `C` of the map.
        dilations: the `r_i`.
        width: channels `E` of each branch; by default `C / 2`.
        key_width: `d`, channels of queries, keys and values; by default `E / 2`.
        out_channels: channels `O` of the output; by default `C`.
        key_layers: projections of queries and of keys, 1 or 2.
        share: whether keys are the queries.
        subsample: side of the cells that the map is max-pooled by inside the object context.
        implementation: `"reference"` builds the weights, `"fused"` runs `scaled_dot_product_attention`.

    Shape:
        `(B, C, H, W) -> (B, O, H, W)`.

    Cost:
        `(10 + 9 n) N C E + (n + 2) N E O + 4 M E d + 2 M d^2 + 2 M^2 d` multiply-accumulates with `n` dilations and
        `M` cells, `M = N / 4` by default; `M d^2` less for each projection that is one layer, and half of both
        projections with `share`.

    Raises:
        ValueError: if an argument is outside its range, or a width is odd where its half is the default.

    Source:
        Yuan et al., "OCNet: Object Context for Semantic Segmentation", IJCV 2021, arXiv:1809.00916, object context
        pooling and ASP-OC.

    Deviations:
        Queries and keys are two projections each, as in the authors' later code; their first has one for both
        (`key_layers=1, share=True`), values as wide as the branch, and a 1x1 convolution behind the object context.
        The object context is rectified leakily, as in the first code. The later one has a ReLU there, whose gradient
        is zero at the zeros that `P` starts with: the object context would stay zero for good.
        Both compute the context on maxima of 2x2 pixels, which the paper's equations do not show (`subsample=1`); a
        side of length 1 is not pooled, so that any size works. The dilations are those for an output stride of 8.
        The dropout behind the last normalisation belongs to the head.

    Example:
        >>> AtrousObjectContext(16).eval()(torch.zeros(1, 16, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="asp_oc",
        title="OCNet (ASP-OC)",
        source=SOURCE,
        reach="global",
        growth=2.0,
        implementations=("reference", "fused"),
        deviations=(
            "Queries and keys are two projections each as in the authors' later code; their first has one for both, "
            "wider values and one more 1x1 convolution: `key_layers`, `share`.",
            "The object context is computed on maxima of 2x2 pixels as in the authors' code, which the equations do "
            "not show: `subsample`.",
            "The object context is rectified leakily as in the authors' first code: behind the later one's ReLU it "
            "would stay at the zeros that it starts with.",
            DROPOUT,
        ),
    )
    core: ScaledAttention

    def __init__(
        self,
        channels: int,
        *,
        dilations: Sequence[int] = (12, 24, 36),
        width: int | None = None,
        key_width: int | None = None,
        out_channels: int | None = None,
        key_layers: int = 2,
        share: bool = False,
        subsample: int = 2,
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        if not dilations or min(dilations) < 1:
            raise ValueError(f"AtrousObjectContext: expected dilations >= 1, got {tuple(dilations)}")
        branch = branch_width("AtrousObjectContext", channels, width, 2)
        self.dilations = tuple(dilations)
        self.front = conv_norm_relu(channels, branch, 3)
        self.context = ObjectContextPooling(
            branch,
            branch_width("AtrousObjectContext", branch, key_width, 2),
            key_layers=key_layers,
            share=share,
            subsample=subsample,
            implementation=implementation,
        )
        self.core = self.context.core
        self.norm = nn.BatchNorm2d(branch)
        self.branches = nn.ModuleList(
            [
                conv_norm_relu(channels, branch),
                *(conv_norm_relu(channels, branch, 3, dilation=dilation) for dilation in self.dilations),
            ]
        )
        fused = (len(self.branches) + 1) * branch
        self.fuse = conv_norm_relu(fused, output_channels("AtrousObjectContext", channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Concatenates the object context and the convolutions, and fuses them."""
        self.expect_map(x)
        context = F.leaky_relu(self.norm(self.context(self.front(x))), _SLOPE)  # (B, E, H, W)
        fused: Tensor = self.fuse(torch.cat([context, *(branch(x) for branch in self.branches)], dim=1))
        return fused

    def macs(self, height: int, width: int) -> int:
        """All convolutions at each pixel, but for those of the object context, and the attention."""
        pixels = height * width
        convolutions = sum(conv_macs(part, pixels) for part in (self.front, self.branches, self.fuse))
        return convolutions + self.context.macs(height, width)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, 1, H, W)` of the object context over the pixels, behind the 3x3 convolution in front."""
        self.expect_position(x, position)
        return self.context.pixel_weights(self.front(x), position)
