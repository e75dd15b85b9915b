"""Multi-scale convolutional attention: the features times what strip convolutions of several lengths make of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from operators.convolutional_attention import ConvolutionalAttention, MultiScaleGate, odd_kernel
from operators.interface import OperatorSpec, Source
from operators.registry import register


@register
class MultiScaleConvolutional(ConvolutionalAttention):
    """Multi-scale convolutional attention (MSCA) in its block: a gate from pairs of strip convolutions of many lengths.

    Equation: `y = x + s * (u + W_2 gate(GELU(W_1 u + b_1)) + b_2)`, `u = BN(x)`, with the gate of `MultiScaleGate`.
    Nothing sums to one and no position is weighed against another: the attention is a gate for each channel of each
    pixel.

    Args:
        channels: width `C` of the map.
        local_size: side `l` of the first depthwise kernel.
        strip_sizes: lengths `k` of the strips.
        layer_scale: `s` at the start.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `N C (3 C + l^2 + 2 sum_k k)` multiply-accumulates.

    Raises:
        ValueError: if an argument is outside its range, or `strip_sizes` is empty.

    Source:
        Guo et al., "SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation", NeurIPS 2022,
        arXiv:2209.08575, Eq. 1 and 2, figure 2.

    Deviations:
        The block comes without its feed-forward part. As in the authors' code and mmsegmentation, the normalised map is
        added inside the block before the scale, so that `s` scales two terms, and the scale starts at 0.01; the
        equations show neither.

    Example:
        >>> import torch
        >>> MultiScaleConvolutional(16).eval()(torch.zeros(1, 16, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="multi_scale_convolutional",
        title="SegNeXt (MSCA)",
        source=Source(
            title="SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation",
            venue="NeurIPS",
            year=2022,
            url="https://arxiv.org/abs/2209.08575",
            equations="Eq. 1 and 2, figure 2",
        ),
        reach="window",
        growth=1.0,
        deviations=(
            "The attention part of the block without its feed-forward part.",
            "The normalised map is added inside the block and a scale that starts at 0.01 follows, as in the authors' "
            "code and mmsegmentation; the equations show neither.",
        ),
    )
    core: MultiScaleGate

    def __init__(
        self,
        channels: int,
        *,
        local_size: int = 5,
        strip_sizes: Sequence[int] = (7, 11, 21),
        layer_scale: float = 1e-2,
    ) -> None:
        odd_kernel("MultiScaleConvolutional", "local_size", local_size)
        sizes = tuple(odd_kernel("MultiScaleConvolutional", "strip_sizes", size) for size in strip_sizes)
        if not sizes:
            raise ValueError("MultiScaleConvolutional: expected strip_sizes, got none")
        super().__init__(channels, partial(MultiScaleGate, local_size=local_size, strip_sizes=sizes), layer_scale)
