"""Spatial-reduction attention: pixels read a map that a strided convolution has made smaller (PVT, SegFormer)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.head_attention import HeadAttention, merge_heads, position_of, split_heads, to_map, to_tokens
from operators.interface import AttentionOperator, Implementation, OperatorSpec, Source
from operators.layers import ChannelNorm, head_width
from operators.registry import register


@register
class SpatialReduction(AttentionOperator):
    """Spatial-reduction attention (SRA): multi-head attention to cells of `R x R` pixels instead of pixels.

    Equation: `y = x + W_o [head_1; ...; head_h] + b_o`, `head = softmax(q k^T / sqrt(d)) v`, with `q = W_q z + b_q` of
    the pixels `z = norm(x)` and `[k; v] = W_kv s + b_kv` of the cells `s = norm(W_s * z + b_s)`, a convolution with
    kernel and stride `R`; `d = C / h`.

    Args:
        channels: width `C` of the map.
        num_heads: number `h` of heads; the papers' 8 at 512 channels.
        reduction: side `R` of a cell. The papers have 8, 4, 2 and 1 at output strides 4, 8, 16 and 32; the default is
            theirs at stride 8. With 1 there is no convolution and keys and values come from the pixels.
        implementation: `"reference"` builds the `N x M` weights of each head, `"fused"` computes them with
            `scaled_dot_product_attention`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`; sizes that `R` does not divide, and maps smaller than a cell, are fine.

    Cost:
        `2 N C^2 + M R^2 C^2 + 2 M C^2 + 2 N M C` multiply-accumulates with `M = ceil(H / R) ceil(W / R)` cells;
        the second term is nothing for `R = 1`.

    Raises:
        ValueError: if `num_heads` does not divide `channels`, `reduction` is below 1, or `implementation` is unknown.

    Source:
        Wang et al., "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions",
        ICCV 2021, arXiv:2102.12122, section 3.3 and figure 4; also Xie et al., "SegFormer: Simple and Efficient Design
        for Semantic Segmentation with Transformers", NeurIPS 2021, arXiv:2105.15203, Eq. 1 and 2.

    Deviations:
        The sublayer alone, `x + attention(norm(x))`: the feed-forward sublayer behind it is left out. Where `R` does
        not divide the map, zeros are appended on the right and below, so that every pixel is read; the authors' codes
        leave the rest of the map unread and cannot take one smaller than a cell. Projections have biases as in the
        authors' configurations; the equations show none. Dropout is left out.

    Example:
        >>> operator = SpatialReduction(16)
        >>> operator.attention(torch.randn(2, 16, 5, 7), (4, 6)).shape
        torch.Size([2, 8, 5, 7])
    """

    spec = OperatorSpec(
        name="spatial_reduction",
        title="SRA (PVT)",
        source=Source(
            title="Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions",
            venue="ICCV",
            year=2021,
            url="https://arxiv.org/abs/2102.12122",
            equations="section 3.3, figure 4",
        ),
        reach="global",
        growth=2.0,
        implementations=("reference", "fused"),
        deviations=(
            "The sublayer with its normalisation and residual, without the feed-forward sublayer.",
            "A map that cells do not fill is padded with zeros on the right and below; the authors' code leaves the "
            "rest unread.",
            "The reduction is the papers' at output stride 8 at any width: `reduction`.",
        ),
    )
    core: HeadAttention

    def __init__(
        self, channels: int, *, num_heads: int = 8, reduction: int = 4, implementation: Implementation = "reference"
    ) -> None:
        super().__init__(channels)
        if reduction < 1:
            raise ValueError(f"SpatialReduction: expected reduction >= 1, got {reduction!r}")
        self.core = HeadAttention(head_width("SpatialReduction", channels, num_heads), implementation=implementation)
        self.num_heads, self.reduction = num_heads, reduction
        self.norm = ChannelNorm(channels, eps=1e-6)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        for layer in (self.query, self.key_value, self.out):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.reduce: nn.Module = nn.Identity()
        if reduction > 1:
            self.reduce = nn.Sequential(
                nn.Conv2d(channels, channels, reduction, stride=reduction), ChannelNorm(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Adds what the heads read from the cells."""
        self.expect_map(x)
        read = merge_heads(self.core(*self._project(x)))  # (B, N, C)
        return x + to_map(self.out(read), x)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries `(B, h, N, d)` of the pixels, keys and values `(B, h, M, d)` of the cells."""
        normalised = self.norm(x)
        height, width = x.shape[-2:]
        filled = F.pad(normalised, (0, -width % self.reduction, 0, -height % self.reduction))
        cells = to_tokens(self.reduce(filled))  # (B, M, C)
        parts = (self.query(to_tokens(normalised)), *self.key_value(cells).chunk(2, dim=2))
        return tuple(split_heads(part, self.num_heads) for part in parts)

    def macs(self, height: int, width: int) -> int:
        """`2 N C^2 + M R^2 C^2 + 2 M C^2 + 2 N M C`."""
        pixels, cells = height * width, -(-height // self.reduction) * -(-width // self.reduction)
        reducing = self.reduction**2 if self.reduction > 1 else 0
        projections = (2 * pixels + (reducing + 2) * cells) * self.channels**2
        return projections + 2 * pixels * cells * self.channels

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, h, H, W)` of each head, which sum to one: each cell's, spread evenly over its pixels."""
        self.expect_position(x, position)
        query, key, _ = self._project(x)
        weights = self.core.weights(query[:, :, position_of(x, position)], key).squeeze(2)  # (B, h, M)
        height, width = x.shape[-2:]
        grid = torch.unflatten(weights, 2, (-(-height // self.reduction), -(-width // self.reduction)))
        spread = grid.repeat_interleave(self.reduction, 2).repeat_interleave(self.reduction, 3)
        # Cells at the border hold fewer pixels of the map.
        shares = self._pixels_per_cell(height, x).unsqueeze(1) * self._pixels_per_cell(width, x)  # (H, W)
        return spread[:, :, :height, :width] / shares

    def _pixels_per_cell(self, size: int, like: Tensor) -> Tensor:
        """For each of `size` positions along an axis, how many positions of the map share its cell."""
        starts = torch.arange(size, device=like.device) // self.reduction * self.reduction
        return torch.clamp(size - starts, max=self.reduction).to(like.dtype)
