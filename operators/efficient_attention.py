"""Efficient attention: the product of keys and values before that with the queries, at linear cost."""

from __future__ import annotations

from torch import Tensor

from operators.gather_attention import GatherAttention, GatherCore, Normalization
from operators.interface import AttentionOperator, Implementation, OperatorSpec, Source
from operators.layers import branch_width
from operators.registry import register


@register
class EfficientAttention(AttentionOperator):
    """Efficient attention module: each key gathers a global context vector, each query mixes these vectors.

    Equation: `y = x + W_o [E_1; ...; E_h] + b_o` with `E = (v r_k(k)^T) r_q(q)` in each head, where `q`, `k` and `v`
    are affine maps of the pixels and, with `d_k` channels per head and `N` positions::

        softmax    r_q(q) = softmax of each pixel over the d_k channels,    r_k(k) = softmax of each channel over N
        scaling    r_q(q) = q / sqrt(N),                                    r_k(k) = k / sqrt(N)

    Args:
        channels: width `C` of the map.
        key_width: `D_k`, channels of queries and keys; by default `C / 2`.
        value_width: `D_v`, channels of the values; by default `C`.
        num_heads: heads that both are split into.
        normalization: `"softmax"` or `"scaling"`.
        implementation: `"reference"` maps every pixel to values and back, `"fused"` only the context vectors.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `2 N C (D_k + D_v) + 2 N D_k D_v / h` multiply-accumulates; fused, `4 N C D_k + 2 C D_k D_v / h`.

    Raises:
        ValueError: if an argument is outside its range, or `channels` is odd and `key_width` not given.

    Source:
        Shen et al., "Efficient Attention: Attention with Linear Complexities", WACV 2021, arXiv:1812.01243,
        the efficient attention mechanism and its module.

    Deviations:
        Scaling computes exactly what dot-product attention divided by `N` does; softmax only approximates softmax
        attention, which the authors' documentation takes for the same expressive power. Heads are in the authors' code
        and not in the paper, one by default. The authors' code leaves both widths to its caller. Their output
        convolution has a bias, is not normalised and does not start at zero.

    Example:
        >>> import torch
        >>> operator = EfficientAttention(16, num_heads=2)
        >>> operator.attention(torch.randn(2, 16, 5, 7), (0, 0)).sum((2, 3)).shape
        torch.Size([2, 2])
    """

    spec = OperatorSpec(
        name="efficient_attention",
        title="Efficient attention",
        source=Source(
            title="Efficient Attention: Attention with Linear Complexities",
            venue="WACV",
            year=2021,
            url="https://arxiv.org/abs/1812.01243",
            equations="efficient attention mechanism, efficient attention module",
        ),
        reach="global",
        growth=1.0,
        implementations=("reference", "fused"),
        deviations=(
            "Softmax is the default of paper and code; the paper's other normalisation, which equals dot-product "
            "attention divided by N, is not in the code: `normalization`.",
            "Heads are in the authors' code and not in the paper: `num_heads`.",
            "The authors' code leaves the widths of keys and values to its caller; here they are C/2 and C.",
        ),
    )
    core: GatherCore

    def __init__(
        self,
        channels: int,
        *,
        key_width: int | None = None,
        value_width: int | None = None,
        num_heads: int = 1,
        normalization: Normalization = "softmax",
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        self.stage = GatherAttention(
            channels,
            branch_width("EfficientAttention", channels, None, 2) if key_width is None else key_width,
            channels if value_width is None else value_width,
            num_heads=num_heads,
            normalization=normalization,
            implementation=implementation,
        )
        self.core = self.stage.core

    def forward(self, x: Tensor) -> Tensor:
        """Input plus what each pixel reads."""
        self.expect_map(x)
        added: Tensor = x + self.stage(x)
        return added

    def macs(self, height: int, width: int) -> int:
        """Attention with its convolutions."""
        return self.stage.macs(height * width)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, heads, H, W)`; with softmax each head's sum to one, with scaling they may be negative."""
        self.expect_position(x, position)
        return self.stage.pixel_weights(x, position)
