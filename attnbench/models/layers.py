"""Layers that backbones and heads share."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn


class ConvNormReLU(nn.Sequential):
    """`y = ReLU(BN(W * x))` with a `k x k` kernel whose zero padding keeps the size at stride 1.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd `k`.
        stride: step of the kernel.

    Shape:
        `(B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))`.

    Cost:
        `k^2 in_channels out_channels` multiply-accumulates at each position of the output.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
        norm = nn.BatchNorm2d(out_channels)
        super().__init__(OrderedDict(conv=conv, norm=norm, relu=nn.ReLU(inplace=True)))
        init_convolutions(self)


def init_convolutions(module: nn.Module) -> None:
    """Draws every convolution in `module` from Kaiming's normal distribution (fan out, ReLU)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """1x1 convolution to logits, drawn small (deviation 0.01): training starts from near-uniform scores."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize to `size`; corners are pixels' corners, not centres (`align_corners=False`)."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
