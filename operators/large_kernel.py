"""Large kernel attention: the features times what a large kernel, taken apart, makes of them (VAN)."""

from __future__ import annotations

from functools import partial

from operators.convolutional_attention import ConvolutionalAttention, LargeKernelGate, odd_kernel
from operators.interface import OperatorSpec, Source
from operators.registry import register


@register
class LargeKernel(ConvolutionalAttention):
    """Large kernel attention (LKA) in its block: a gate from a depthwise, a dilated depthwise and a 1x1 convolution.

    Equation: `y = x + s * (u + W_2 gate(GELU(W_1 u + b_1)) + b_2)`, `u = BN(x)`, with the gate of `LargeKernelGate`. A
    5x5 kernel and a 7x7 kernel of dilation 3, one on the other, see 23x23 pixels and stand for a 21x21 kernel. Nothing
    sums to one and no position is weighed against another: the attention is a gate for each channel of each pixel.

    Args:
        channels: width `C` of the map.
        local_size: side `l` of the first depthwise kernel.
        kernel_size: taps `k` along a side of the dilated depthwise kernel.
        dilation: of that kernel.
        layer_scale: `s` at the start.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `N C (3 C + l^2 + k^2)` multiply-accumulates.

    Raises:
        ValueError: if an argument is outside its range.

    Source:
        Guo et al., "Visual Attention Network", CVMJ 2023, arXiv:2202.09741, Eq. 1 and 2, figures 2 and 3.

    Deviations:
        The block comes without its feed-forward part. As in the authors' code, the normalised map is added inside the
        block before the scale, so that `s` scales two terms, and the scale starts at 0.01; the equations show neither.

    Example:
        >>> import torch
        >>> LargeKernel(16).eval()(torch.zeros(1, 16, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="large_kernel",
        title="VAN (LKA)",
        source=Source(
            title="Visual Attention Network",
            venue="CVMJ",
            year=2023,
            url="https://arxiv.org/abs/2202.09741",
            equations="Eq. 1 and 2, figures 2 and 3",
        ),
        reach="window",
        growth=1.0,
        deviations=(
            "The attention part of the block without its feed-forward part.",
            "The normalised map is added inside the block and a scale that starts at 0.01 follows, as in the authors' "
            "code; the equations show neither.",
        ),
    )
    core: LargeKernelGate

    def __init__(
        self,
        channels: int,
        *,
        local_size: int = 5,
        kernel_size: int = 7,
        dilation: int = 3,
        layer_scale: float = 1e-2,
    ) -> None:
        odd_kernel("LargeKernel", "local_size", local_size)
        odd_kernel("LargeKernel", "kernel_size", kernel_size)
        if dilation < 1:
            raise ValueError(f"LargeKernel: expected dilation >= 1, got {dilation!r}")
        gate = partial(LargeKernelGate, local_size=local_size, kernel_size=kernel_size, dilation=dilation)
        super().__init__(channels, gate, layer_scale)
