"""Atrous spatial pyramid pooling of DeepLabV3 and DeepLabV3+: context from dilated convolutions, without attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source
from operators.layers import branch_width, conv_macs, conv_norm_relu, output_channels, separable_conv_norm_relu
from operators.registry import register


class _AtrousPyramid(AttentionOperator):
    """Concatenates the mean of the map with convolutions of several dilations, and fuses them."""

    def __init__(
        self,
        channels: int,
        *,
        dilations: tuple[int, ...],
        width: int | None,
        out_channels: int | None,
        fuse_kernel: int,
    ) -> None:
        super().__init__(channels)
        owner = type(self).__name__
        if not dilations or min(dilations) < 1:
            raise ValueError(f"{owner}: expected dilations >= 1, got {tuple(dilations)}")
        if fuse_kernel not in (1, 3):
            raise ValueError(f"{owner}: expected fuse_kernel 1 or 3, got {fuse_kernel!r}")
        self.dilations = tuple(dilations)
        self.width = branch_width(owner, channels, width)
        self.image = conv_norm_relu(channels, self.width)
        self.branches = nn.ModuleList(
            self._dilated(channels, self.width, dilation) if dilation > 1 else conv_norm_relu(channels, self.width)
            for dilation in self.dilations
        )
        fused = (len(self.dilations) + 1) * self.width
        self.fuse = conv_norm_relu(fused, output_channels(owner, channels, out_channels), fuse_kernel)

    @staticmethod
    def _dilated(in_channels: int, out_channels: int, dilation: int) -> nn.Sequential:
        return conv_norm_relu(in_channels, out_channels, 3, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenates the mean and the dilated convolutions and fuses them."""
        self.expect_map(x)
        image = self.image(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])  # (B, E, H, W)
        fused: Tensor = self.fuse(torch.cat([image, *(branch(x) for branch in self.branches)], dim=1))
        return fused

    def macs(self, height: int, width: int) -> int:
        """All convolutions, that of the mean at one position."""
        pixels = height * width
        return conv_macs(self.image, 1) + conv_macs(self.branches, pixels) + conv_macs(self.fuse, pixels)


@register
class AtrousSpatialPyramidPooling(_AtrousPyramid):
    """Atrous spatial pyramid pooling of DeepLabV3: dilated convolutions side by side with the mean of the map.

    Equation: `y = f([g_0(mean(x)), g_1(x), ..., g_n(x)])`, where `g_i` is a 3x3 convolution of dilation `d_i` to `E`
    channels, a 1x1 convolution where `d_i = 1` and for the mean, and `f` a 3x3 convolution to `C` channels; all have
    batch normalisation and ReLU.

    In training, the batch normalisation of the mean needs two images: it raises PyTorch's `ValueError` for one.

    Args:
        channels: width `C` of the map.
        dilations: the `d_i`.
        width: channels `E` of each branch; by default `C / 4`.
        out_channels: channels of the output; by default `C`.
        fuse_kernel: side of the kernel of `f`, 1 or 3.

    Shape:
        `(B, C, H, W) -> (B, out_channels, H, W)`.

    Cost:
        `C E + N C E (n_1 + 9 n_3) + 9 N (n + 1) E out_channels` multiply-accumulates, with `n_1` 1x1 and `n_3` 3x3
        branches.

    Raises:
        ValueError: if `dilations` is empty or holds one below 1, or another argument is outside its range.

    Source:
        Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation, arXiv 2017, section 3.3, figure 5.

    Deviations:
        The fusing convolution is 3x3, as in mmsegmentation; the paper's is 1x1 (`fuse_kernel=1`). The dilations are
        those for an output stride of 8. The paper's branches have 256 channels.

    Example:
        >>> AtrousSpatialPyramidPooling(16).eval()(torch.zeros(1, 16, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="aspp",
        title="ASPP",
        source=Source(
            title="Rethinking Atrous Convolution for Semantic Image Segmentation",
            venue="arXiv",
            year=2017,
            url="https://arxiv.org/abs/1706.05587",
            equations="section 3.3, figure 5",
        ),
        reach="global",
        growth=1.0,
        kind="context",
        deviations=("The fusing convolution is 3x3 (mmsegmentation) instead of 1x1 (paper): `fuse_kernel`.",),
    )

    def __init__(
        self,
        channels: int,
        *,
        dilations: tuple[int, ...] = (1, 12, 24, 36),
        width: int | None = None,
        out_channels: int | None = None,
        fuse_kernel: int = 3,
    ) -> None:
        super().__init__(channels, dilations=dilations, width=width, out_channels=out_channels, fuse_kernel=fuse_kernel)


@register
class SeparableAtrousSpatialPyramidPooling(_AtrousPyramid):
    """Atrous spatial pyramid pooling of DeepLabV3+: its dilated convolutions are depthwise separable.

    Equation: that of `AtrousSpatialPyramidPooling`, with every dilated convolution in two: each channel by itself, then
    a 1x1 convolution across channels; both have batch normalisation and ReLU.

    In training, the batch normalisation of the mean needs two images: it raises PyTorch's `ValueError` for one.

    Args:
        channels: width `C` of the map.
        dilations: the `d_i`.
        width: channels `E` of each branch; by default `C / 4`.
        out_channels: channels of the output; by default `C`.
        fuse_kernel: side of the kernel of `f`, 1 or 3.

    Shape:
        `(B, C, H, W) -> (B, out_channels, H, W)`.

    Cost:
        `C E + N C (n_1 E + n_3 (9 + E)) + 9 N (n + 1) E out_channels` multiply-accumulates, with `n_1` 1x1 and `n_3`
        3x3 branches.

    Raises:
        ValueError: if `dilations` is empty or holds one below 1, or another argument is outside its range.

    Source:
        Chen et al., Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation, ECCV 2018,
        section 3.1.

    Deviations:
        The fusing convolution is 3x3, as in mmsegmentation; the paper's is 1x1 (`fuse_kernel=1`). The decoder that adds
        features of a finer level belongs to the head.

    Example:
        >>> SeparableAtrousSpatialPyramidPooling(16).eval()(torch.zeros(1, 16, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="separable_aspp",
        title="Separable ASPP",
        source=Source(
            title="Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation",
            venue="ECCV",
            year=2018,
            url="https://arxiv.org/abs/1802.02611",
            equations="section 3.1",
        ),
        reach="global",
        growth=1.0,
        kind="context",
        deviations=(
            "The fusing convolution is 3x3 (mmsegmentation) instead of 1x1 (paper): `fuse_kernel`.",
            "The decoder that adds features of a finer level belongs to the head.",
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        dilations: tuple[int, ...] = (1, 12, 24, 36),
        width: int | None = None,
        out_channels: int | None = None,
        fuse_kernel: int = 3,
    ) -> None:
        super().__init__(channels, dilations=dilations, width=width, out_channels=out_channels, fuse_kernel=fuse_kernel)

    @staticmethod
    def _dilated(in_channels: int, out_channels: int, dilation: int) -> nn.Sequential:
        return separable_conv_norm_relu(in_channels, out_channels, 3, dilation=dilation)
