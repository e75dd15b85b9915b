"""Multi-head self-attention of the vision transformer: every pixel reads every pixel, in several heads (ViT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from operators.head_attention import HeadAttention, merge_heads, position_of, split_heads, to_map, to_tokens
from operators.interface import AttentionOperator, Implementation, OperatorSpec, Source
from operators.layers import ChannelNorm, head_width
from operators.registry import register


@register
class MultiHeadAttention(AttentionOperator):
    """Multi-head self-attention: each pixel adds what `h` heads read from all pixels.

    Equation: `y = x + W_o [head_1; ...; head_h] + b_o`, `head = softmax(q k^T / sqrt(d)) v` and
    `[q; k; v] = W norm(x) + b`, with `d = C / h` channels of `q`, `k` and `v` in each head.

    Args:
        channels: width `C` of the map.
        num_heads: number `h` of heads; 8 are 64 channels a head at `C = 512`.
        implementation: `"reference"` builds the `N x N` weights of each head, `"fused"` computes them with
            `scaled_dot_product_attention`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `4 N C^2 + 2 N^2 C` multiply-accumulates, whatever the number of heads.

    Raises:
        ValueError: if `num_heads` does not divide `channels`, or `implementation` is unknown.

    Source:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, Eq. 1 and section 3.2.2, as the
        layer of Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        ICLR 2021, arXiv:2010.11929, Eq. 2 and 5-8.

    Deviations:
        The sublayer alone, `x + attention(norm(x))`: the feed-forward sublayer behind it is left out. The
        normalisation stands in front of it as in ViT; Vaswani et al. normalise the sum. There is no class token, no
        dropout and no position embedding, which ViT adds to the network's first tokens: the operator commutes with
        every permutation of the pixels. Projections have biases as in ViT's code; the papers' equations show none.

    Example:
        >>> operator = MultiHeadAttention(16)
        >>> operator.attention(torch.randn(2, 16, 5, 7), (0, 0)).shape
        torch.Size([2, 8, 5, 7])
    """

    spec = OperatorSpec(
        name="multi_head_attention",
        title="Multi-head (ViT)",
        source=Source(
            title="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
            venue="ICLR",
            year=2021,
            url="https://arxiv.org/abs/2010.11929",
            equations="Eq. 2 and 5-8",
        ),
        reach="global",
        growth=2.0,
        implementations=("reference", "fused"),
        deviations=(
            "The sublayer with its normalisation and residual, without the feed-forward sublayer.",
            "Pixels carry no position embedding, which ViT adds to the network's first tokens, and there is no class "
            "token.",
            "Projections have biases as in ViT's code; the equations show none.",
        ),
    )
    core: HeadAttention

    def __init__(self, channels: int, *, num_heads: int = 8, implementation: Implementation = "reference") -> None:
        super().__init__(channels)
        self.core = HeadAttention(head_width("MultiHeadAttention", channels, num_heads), implementation=implementation)
        self.num_heads = num_heads
        self.norm = ChannelNorm(channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        for layer in (self.qkv, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Adds what the heads read."""
        self.expect_map(x)
        read = merge_heads(self.core(*self._project(x)))  # (B, N, C)
        return x + to_map(self.out(read), x)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values `(B, h, N, d)`."""
        parts = self.qkv(to_tokens(self.norm(x))).chunk(3, dim=2)  # 3 x (B, N, C)
        return tuple(split_heads(part, self.num_heads) for part in parts)

    def macs(self, height: int, width: int) -> int:
        """`4 N C^2 + 2 N^2 C`."""
        pixels = height * width
        return 4 * pixels * self.channels**2 + 2 * pixels**2 * self.channels

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, h, H, W)` of each head; each sums to one."""
        self.expect_position(x, position)
        query, key, _ = self._project(x)
        weights = self.core.weights(query[:, :, position_of(x, position)], key)  # (B, h, 1, N)
        return torch.unflatten(weights.squeeze(2), 2, x.shape[-2:])
