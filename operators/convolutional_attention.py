"""The block of VAN and SegNeXt: a map times what large depthwise convolutions make of it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator
from operators.layers import conv_macs


def depthwise(channels: int, kernel_size: int | tuple[int, int], *, dilation: int = 1) -> nn.Conv2d:
    """Convolution of each channel by itself with odd sides, whose zero padding keeps the size.

    Example:
        >>> depthwise(8, (1, 7), dilation=3).padding
        (0, 9)
    """
    sides = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    padding = (dilation * (sides[0] // 2), dilation * (sides[1] // 2))
    return nn.Conv2d(channels, channels, sides, padding=padding, dilation=dilation, groups=channels)


def odd_kernel(owner: str, name: str, size: int) -> int:
    """`size`, a side of a kernel.

    Raises:
        ValueError: if it is below 1 or even.

    Example:
        >>> odd_kernel("LargeKernel", "kernel_size", 7)
        7
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"{owner}: expected {name} >= 1 and odd, got {size!r}")
    return size


class LargeKernelGate(nn.Module):
    """A map times a gate that chained depthwise convolutions and one across channels compute from it.

    Equation: `y = x * (W (D (L x)))`: `L` and `D` convolve each channel, `D` with dilation; all have biases.

    Args:
        channels: width `C` of the map.
        local_size: side of the kernel of `L`.
        kernel_size: taps along a side of the kernel of `D`.
        dilation: of `D`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.
    """

    def __init__(self, channels: int, *, local_size: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.local = depthwise(channels, local_size)
        self.distant = depthwise(channels, kernel_size, dilation=dilation)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The gated map."""
        gate: Tensor = self.mix(self.distant(self.local(x)))
        return x * gate


class MultiScaleGate(nn.Module):
    """A map times a gate that depthwise convolutions of several sizes and one across channels compute from it.

    Equation: `y = x * (W (u + sum_k V_k (H_k u)))`, `u = L x`: each channel is convolved by `L`, by `H_k` with a
    `1 x k` and by `V_k` with a `k x 1` kernel; all have biases.

    Args:
        channels: width `C` of the map.
        local_size: side of the kernel of `L`.
        strip_sizes: the lengths `k`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.
    """

    def __init__(self, channels: int, *, local_size: int, strip_sizes: Sequence[int]) -> None:
        super().__init__()
        self.local = depthwise(channels, local_size)
        self.strips = nn.ModuleList(
            nn.Sequential(
                OrderedDict(horizontal=depthwise(channels, (1, size)), vertical=depthwise(channels, (size, 1)))
            )
            for size in strip_sizes
        )
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The gated map."""
        local = self.local(x)
        scales = sum((strip(local) for strip in self.strips), start=local)
        gate: Tensor = self.mix(scales)
        return x * gate


class ConvolutionalAttention(AttentionOperator):
    """Base of the two blocks: 1x1 convolution, GELU, gate, 1x1 convolution, and two residuals.

    Equation: `y = x + s * (u + W_2 gate(GELU(W_1 u + b_1)) + b_2)`, `u = BN(x)`, with a learned scale `s` for each
    channel.

    Args:
        channels: width `C` of the map.
        gate: builds the attention itself for `C` channels.
        layer_scale: `s` at the start.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.
    """

    def __init__(self, channels: int, gate: Callable[[int], nn.Module], layer_scale: float) -> None:
        super().__init__(channels)
        self.norm = nn.BatchNorm2d(channels)
        self.enter = nn.Conv2d(channels, channels, 1)
        self.core = gate(channels)
        self.leave = nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.full((channels,), float(layer_scale)))
        for conv in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            fan_out = conv.weight[0, 0].numel() * conv.out_channels // conv.groups
            nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The map with its scaled attention."""
        self.expect_map(x)
        normed: Tensor = self.norm(x)
        attended: Tensor = normed + self.leave(self.core(F.gelu(self.enter(normed))))
        return x + self.scale[:, None, None] * attended

    def macs(self, height: int, width: int) -> int:
        """All convolutions keep the size."""
        return conv_macs(self, height * width)
