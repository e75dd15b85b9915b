"""Efficient channel attention (ECA): a gate for each channel, from the averages of its neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source
from operators.registry import register


def adaptive_kernel_size(channels: int, gamma: float, offset: float) -> int:
    """The odd number nearest to `|(log2(C) + b) / gamma|`; of two, the larger.

    Example:
        >>> [adaptive_kernel_size(channels, 2, 1) for channels in (64, 128, 512, 2048)]
        [3, 5, 5, 7]
    """
    target = math.floor(abs((math.log2(channels) + offset) / gamma))
    return target if target % 2 else target + 1


@register
class EfficientChannelAttention(AttentionOperator):
    """ECA: scales each channel by a gate that sees the averages of `k` neighbouring channels.

    Equation: `y = x * sigmoid(w * z)` with the average `z` of the map's pixels and a kernel `w` over channels whose
    size is `k = |log2(C) / gamma + b / gamma|`, rounded to an odd number.

    Args:
        channels: width `C` of the map.
        gamma: as in the equation; not zero.
        offset: `b` of the equation.
        kernel_size: `k`; odd. By default that of the equation.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `k C` multiply-accumulates, whatever the size of the map.

    Raises:
        ValueError: if `gamma` is zero, or `kernel_size` is not odd and positive.

    Source:
        Wang et al., ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks, CVPR 2020,
        arXiv:1910.03151, equations (9) and (12).

    Deviations:
        The kernel size follows the width, as in the paper; the authors' networks are configured with sizes for each
        stage (`kernel_size`).

    Example:
        >>> EfficientChannelAttention(512).kernel_size
        5
    """

    spec = OperatorSpec(
        name="efficient_channel",
        title="ECA",
        source=Source(
            title="ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
            venue="CVPR",
            year=2020,
            url="https://arxiv.org/abs/1910.03151",
            equations="(9), (12)",
        ),
        reach="global",
        growth=0.0,
        deviations=(
            "The kernel size follows the width (paper); the authors' networks configure it by stage: `kernel_size`.",
        ),
    )

    def __init__(
        self, channels: int, *, gamma: float = 2.0, offset: float = 1.0, kernel_size: int | None = None
    ) -> None:
        super().__init__(channels)
        owner = type(self).__name__
        if not gamma:
            raise ValueError(f"{owner}: expected gamma other than 0, got {gamma!r}")
        if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
            raise ValueError(f"{owner}: expected an odd kernel_size >= 1, got {kernel_size!r}")
        self.kernel_size = adaptive_kernel_size(channels, gamma, offset) if kernel_size is None else kernel_size
        self.conv = nn.Conv1d(1, 1, self.kernel_size, padding=self.kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels."""
        self.expect_map(x)
        energy = self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)  # (B, C)
        return x * torch.sigmoid(energy)[:, :, None, None]

    def macs(self, height: int, width: int) -> int:
        """One convolution over the channels of one vector."""
        return self.kernel_size * self.channels
