"""Convolutional block attention module (CBAM): a gate for each channel, then a gate for each position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source, divide_channels
from operators.registry import register


class ChannelGate(nn.Module):
    """Scales each channel: `y = x * sigmoid(f(mean_i x_i) + f(max_i x_i))` with one `f = W_2 ReLU(W_1 z + b_1) + b_2`.

    Args:
        channels: width `C` of the map.
        hidden: units of the hidden layer.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """The scaled map."""
        # Unlike a pooling layer, amax divides the gradient among equal maxima and does not depend on their order.
        energy = self.transform(x.mean((2, 3))) + self.transform(x.amax((2, 3)))  # (B, C)
        return x * torch.sigmoid(energy)[:, :, None, None]


class SpatialGate(nn.Module):
    """Scales each position: `y_i = x_i * sigmoid(norm(w * [max_c x_c; mean_c x_c])_i)` with an odd kernel `w`.

    Args:
        kernel_size: side of the kernel.
        norm: whether the gate is batch normalised in place of a bias.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.
    """

    def __init__(self, kernel_size: int, *, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=not norm)
        self.norm = nn.BatchNorm2d(1, momentum=0.01) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The scaled map."""
        pooled = torch.cat((x.amax(1, keepdim=True), x.mean(1, keepdim=True)), dim=1)  # (B, 2, H, W)
        gate = torch.sigmoid(self.norm(self.conv(pooled)))  # (B, 1, H, W)
        return x * gate


@register
class ConvolutionalBlockAttention(AttentionOperator):
    """CBAM: gates the channels by their averages and maxima over the map, then the positions by theirs over channels.

    Equation: `u = x * sigmoid(f(mean_i x_i) + f(max_i x_i))` and `y = u * sigmoid(BN(w * [max_c u; mean_c u]))`, where
    the two-layer `f` is shared and `w` is a `k x k` kernel.

    Args:
        channels: width `C` of the map.
        reduction: the hidden layer of `f` has `C / reduction` units.
        kernel_size: `k`; odd.
        norm: whether the gate of the positions is batch normalised, in place of a bias.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `4 C^2 / reduction + 2 k^2 N` multiply-accumulates.

    Raises:
        ValueError: if `reduction` does not divide `channels`, or `kernel_size` is not odd and positive.

    Source:
        Woo et al., CBAM: Convolutional Block Attention Module, ECCV 2018, arXiv:1807.06521, equations (1)-(3).

    Deviations:
        The gate of the positions is batch normalised, as in the authors' code; the paper shows no normalisation
        (`norm=False`). The maximum stands before the mean, as there; in the paper behind it. Among equal maxima the
        gradient is divided, where the authors' pooling gives it to the first.

    Example:
        >>> ConvolutionalBlockAttention(32).eval()(torch.zeros(2, 32, 5, 7)).shape
        torch.Size([2, 32, 5, 7])
    """

    spec = OperatorSpec(
        name="cbam",
        title="CBAM",
        source=Source(
            title="CBAM: Convolutional Block Attention Module",
            venue="ECCV",
            year=2018,
            url="https://arxiv.org/abs/1807.06521",
            equations="(1)-(3)",
        ),
        reach="global",
        growth=1.0,
        deviations=(
            "The gate of the positions is batch normalised (authors); the paper shows no normalisation: `norm`.",
            "Among equal maxima the gradient is divided; the authors' pooling gives it to the first.",
        ),
    )

    def __init__(self, channels: int, *, reduction: int = 16, kernel_size: int = 7, norm: bool = True) -> None:
        super().__init__(channels)
        owner = type(self).__name__
        self.hidden = divide_channels(owner, channels, reduction)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"{owner}: expected an odd kernel_size >= 1, got {kernel_size!r}")
        self.kernel_size = kernel_size
        self.channel_gate = ChannelGate(channels, self.hidden)
        self.spatial_gate = SpatialGate(kernel_size, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels, then the positions."""
        self.expect_map(x)
        scaled: Tensor = self.spatial_gate(self.channel_gate(x))
        return scaled

    def macs(self, height: int, width: int) -> int:
        """Two layers on two vectors, and the convolution of two maps to one."""
        return 4 * self.channels * self.hidden + 2 * self.kernel_size**2 * height * width
