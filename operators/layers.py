"""Layers that several operators share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    *,
    dilation: int = 1,
    groups: int = 1,
    padding: int | None = None,
) -> nn.Sequential:
    """`ReLU(BN(W * x))` with an odd kernel whose zero padding by default keeps the size; parts `conv`, `norm`, `relu`.

    Example:
        >>> [name for name, _ in conv_norm_relu(8, 4, 3).named_children()]
        ['conv', 'norm', 'relu']
    """
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=dilation * (kernel_size // 2) if padding is None else padding,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    norm = nn.BatchNorm2d(out_channels)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm, relu=nn.ReLU(inplace=True)))


def separable_conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int, *, dilation: int = 1
) -> nn.Sequential:
    """A convolution of each channel by itself, then one across channels, each with normalisation and ReLU."""
    depthwise = conv_norm_relu(in_channels, in_channels, kernel_size, dilation=dilation, groups=in_channels)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=conv_norm_relu(in_channels, out_channels)))


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position, on maps `(B, C, H, W)`, as transformers have it.

    Example:
        >>> ChannelNorm(8)(torch.randn(2, 8, 5, 7)).shape
        torch.Size([2, 8, 5, 7])
    """

    def forward(self, x: Tensor) -> Tensor:
        """The normalised map."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def head_width(owner: str, channels: int, num_heads: int) -> int:
    """`channels / num_heads`, the width of one head.

    Raises:
        ValueError: if `num_heads` is below 1 or does not divide `channels`.

    Example:
        >>> head_width("MultiHeadAttention", 512, 8)
        64
    """
    if num_heads < 1 or channels % num_heads:
        raise ValueError(f"{owner}: expected num_heads >= 1 that divides {channels} channels, got {num_heads!r}")
    return channels // num_heads


def conv_macs(module: nn.Module, positions: int) -> int:
    """Multiply-accumulates of all convolutions in `module` at `positions` positions of their outputs.

    Example:
        >>> conv_macs(conv_norm_relu(8, 4, 3), 35) == 35 * 9 * 8 * 4
        True
    """
    weights = (layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d))
    return positions * sum(weights)


def affine_map(conv: nn.Conv2d) -> Tensor:
    """`[W, b]` `(D, C + 1)` of a 1x1 convolution `W x + b`.

    Example:
        >>> affine_map(nn.Conv2d(8, 4, 1)).shape
        torch.Size([4, 9])
    """
    assert conv.bias is not None
    return torch.cat((conv.weight.flatten(1), conv.bias.unsqueeze(1)), dim=1)


def resize(x: Tensor, size: Iterable[int], *, align_corners: bool = False) -> Tensor:
    """`x` `(B, C, h, w)` at `size`, bilinearly; untouched where it has that size."""
    height, width = size
    if tuple(x.shape[-2:]) == (height, width):
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=align_corners)


def interpolation_matrix(source: int, target: int, like: Tensor, *, align_corners: bool = False) -> Tensor:
    """Matrix `(target, source)` of linear resizing along one axis, in the type of `like`."""
    signals = torch.eye(source, dtype=like.dtype, device=like.device).unsqueeze(0)
    return F.interpolate(signals, size=target, mode="linear", align_corners=align_corners)[0].t()


def pooling_matrix(source: int, cells: int, like: Tensor) -> Tensor:
    """Matrix `(cells, source)` of adaptive average pooling along one axis, in the type of `like`."""
    signals = torch.eye(source, dtype=like.dtype, device=like.device).unsqueeze(0)
    return F.adaptive_avg_pool1d(signals, cells)[0].t()


def branch_width(owner: str, channels: int, width: int | None, branches: int = 4) -> int:
    """`width`, or by default `channels / branches`.

    Raises:
        ValueError: if `width` is below 1, or by default `branches` does not divide `channels`.

    Example:
        >>> branch_width("ASPP", 512, None), branch_width("ASPP", 320, 512)
        (128, 512)
    """
    if width is None and channels % branches:
        raise ValueError(f"{owner}: expected channels divisible by {branches}, or a width, got {channels}")
    chosen = channels // branches if width is None else width
    if chosen < 1:
        raise ValueError(f"{owner}: expected width >= 1, got {chosen!r}")
    return chosen


def output_channels(owner: str, channels: int, out_channels: int | None) -> int:
    """`out_channels`, or by default `channels`.

    Raises:
        ValueError: if `out_channels` is below 1.
    """
    chosen = channels if out_channels is None else out_channels
    if chosen < 1:
        raise ValueError(f"{owner}: expected out_channels >= 1, got {chosen!r}")
    return chosen
