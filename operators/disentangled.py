"""Disentangled non-local block: what sets a pair of pixels apart, and what makes one pixel salient to all (DNL)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import (
    AttentionOperator,
    Implementation,
    OperatorSpec,
    Source,
    divide_channels,
    merge_positions,
)
from operators.registry import register

Pairwise = Literal["embedded_gaussian", "dot_product"]
Output = Literal["conv", "gamma"]


class DisentangledAggregation(nn.Module):
    """The whitened pairwise term and the unary term, on the same values.

    Equation: `p_i = sum_j softmax_j((q_i - mean q)^T (k_j - mean k) / (sqrt(d) T)) g_j` (for the dot product the
    similarity itself over `N`), and `u = sum_j softmax_j(m_j) g_j`, which is the same for every `i`.

    Args:
        pairwise: which of them.
        embedding: width `d` of queries and keys.
        scale: whether the softmax divides by `sqrt(d)`.
        temperature: `T`.
        implementation: `"reference"` builds the `N x N` map, `"fused"` does not.

    Shape:
        `q (B, d, N), k (B, d, N), m (B, 1, N), g (B, D, N) -> (B, D, N), (B, D, 1)`.

    Cost:
        `N^2 (d + D) + N D` multiply-accumulates; `2 N d D + N D` for the fused dot product.
    """

    def __init__(
        self, pairwise: Pairwise, embedding: int, *, scale: bool, temperature: float, implementation: Implementation
    ) -> None:
        super().__init__()
        self.pairwise = pairwise
        self.factor = 1 / (temperature * (math.sqrt(embedding) if scale else 1.0))
        self.fused = implementation == "fused"

    def forward(self, query: Tensor, key: Tensor, mask: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The pairwise term and the unary term."""
        values = value.transpose(1, 2)  # (B, N, D)
        unary = torch.bmm(value, torch.softmax(mask, dim=2).transpose(1, 2))  # (B, D, 1)
        if not self.fused:
            pairs = torch.bmm(self.weights(query, key), values)  # (B, N, D)
            return pairs.transpose(1, 2), unary
        query, key = _whiten(query), _whiten(key)
        queries, keys = query.transpose(1, 2), key.transpose(1, 2)  # (B, N, d)
        if self.pairwise == "dot_product":
            pairs = torch.bmm(queries, torch.bmm(key / key.shape[2], values))  # (B, N, D)
            return pairs.transpose(1, 2), unary
        heads = F.scaled_dot_product_attention(
            queries.unsqueeze(1), keys.unsqueeze(1), values.unsqueeze(1), scale=self.factor
        )  # (B, 1, N, D)
        return heads.squeeze(1).transpose(1, 2), unary

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """The pairwise map `(B, N, N)`."""
        return self.rows(_whiten(query), _whiten(key))

    def rows(self, query: Tensor, key: Tensor) -> Tensor:
        """Rows `(B, M, N)` of the pairwise map for `M` of the queries; both are whitened already."""
        similarity = torch.bmm(query.transpose(1, 2), key)  # (B, M, N)
        if self.pairwise == "dot_product":
            return similarity / key.shape[2]
        return torch.softmax(similarity * self.factor, dim=2)

    def macs(self, positions: int, embedding: int, width: int) -> int:
        """Multiply-accumulates on `N` positions with values of `D` channels."""
        if self.pairwise == "dot_product" and self.fused:
            return 2 * positions * embedding * width + positions * width
        return positions**2 * (embedding + width) + positions * width


def _whiten(x: Tensor) -> Tensor:
    """`x` `(B, d, N)` without its mean over the positions."""
    return x - x.mean(dim=2, keepdim=True)


@register
class DisentangledNonLocal(AttentionOperator):
    """Disentangled non-local block: a pairwise term without means and a unary term with a mask of its own.

    Equation: `y_i = x_i + BN(W_o sum_j (w_ij + softmax_j(m_j)) g_j)` with the pairwise weights
    `w_ij = softmax_j((q_i - mean q)^T (k_j - mean k) / (sqrt(d) T))`, where `q`, `k` and `g` are affine maps of `x` to
    `d` channels and `m` to one. With `pairwise="dot_product"` the first
    softmax is the product over `N`. With `output="gamma"` the values have `C` channels and no bias, and
    `y_i = x_i + gamma * (pairwise sum) + (unary sum)`.

    Args:
        channels: width `C` of the map.
        reduction: divisor of the width inside the block, `d = C / reduction`.
        pairwise: the function of a pair.
        scale: whether the softmax of the pairwise term divides by `sqrt(d)`.
        temperature: `T`; below 1 it sharpens the pairwise term.
        output: `"conv"` maps both terms back by `W_o` and a normalisation whose gain starts at zero, `"gamma"` weighs
            the pairwise term alone by a scalar that starts at zero.
        implementation: `"reference"` builds the `N x N` map. `"fused"` computes the softmax with
            `scaled_dot_product_attention`, and the dot product as `q (k^T g)`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `4 N C d + N C + 2 N^2 d + N d` multiply-accumulates; with `output="gamma"`
        `2 N C d + N C^2 + N C + N^2 (C + d) + N C`. The fused dot product has `2 N d` times the width of the values
        in place of the terms in `N^2`.

    Raises:
        ValueError: if `reduction` does not divide `channels`, `temperature` is not positive, or another argument is
            unknown.

    Source:
        Yin et al., "Disentangled Non-Local Neural Networks", ECCV 2020, arXiv:2006.06668, the block of its section
        on disentangled non-local neural networks.

    Deviations:
        `scale`, `temperature` and the output convolution (`output="conv"`) are mmsegmentation's. The paper's equation
        has neither (`scale=False, temperature=1.0`), the authors' code has scale and temperature, and no output
        convolution (`output="gamma"`).

    Example:
        >>> block = DisentangledNonLocal(8)
        >>> x = torch.randn(2, 8, 5, 7)
        >>> torch.equal(block(x), x)
        True
        >>> round(block.attention(x, (0, 0))[0].sum().item(), 4)
        2.0
    """

    spec = OperatorSpec(
        name="disentangled_non_local",
        title="DNL",
        source=Source(
            title="Disentangled Non-Local Neural Networks",
            venue="ECCV",
            year=2020,
            url="https://arxiv.org/abs/2006.06668",
            equations="the disentangled non-local block",
        ),
        reach="global",
        growth=2.0,
        implementations=("reference", "fused"),
        deviations=(
            "Scale and temperature 0.05 are those of the authors' code and mmsegmentation; the paper's equation has "
            "neither: `scale`, `temperature`.",
            "Both terms pass an output convolution as in mmsegmentation; the authors have none and gate the pairwise "
            "term alone: `output`.",
        ),
    )
    core: DisentangledAggregation

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 2,
        pairwise: Pairwise = "embedded_gaussian",
        scale: bool = True,
        temperature: float = 0.05,
        output: Output = "conv",
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        vocabularies = {
            "pairwise": (pairwise, get_args(Pairwise)),
            "output": (output, get_args(Output)),
            "implementation": (implementation, self.spec.implementations),
        }
        for name, (value, vocabulary) in vocabularies.items():
            if value not in vocabulary:
                raise ValueError(f"DisentangledNonLocal: expected {name} in {vocabulary}, got {value!r}")
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"DisentangledNonLocal: expected a finite temperature > 0, got {temperature!r}")
        self.embedding = divide_channels("DisentangledNonLocal", channels, reduction)
        self.width = self.embedding if output == "conv" else channels
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.mask = nn.Conv2d(channels, 1, 1)
        self.value = nn.Conv2d(channels, self.width, 1, bias=output == "conv")
        self.core = DisentangledAggregation(
            pairwise, self.embedding, scale=scale, temperature=temperature, implementation=implementation
        )
        self.conv_out = nn.Conv2d(self.width, channels, 1, bias=False) if output == "conv" else None
        self.norm = nn.BatchNorm2d(channels) if output == "conv" else None
        self.gamma = nn.Parameter(torch.zeros(1)) if output == "gamma" else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.norm is not None:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Input plus both terms."""
        self.expect_map(x)
        maps = (self.query(x), self.key(x), self.mask(x), self.value(x))
        pairs, unary = self.core(*(merge_positions(map_) for map_ in maps))
        if self.gamma is not None:
            pairs = self.gamma * pairs
        read: Tensor = (pairs + unary).reshape(len(x), self.width, *x.shape[-2:])  # (B, D, H, W)
        if self.conv_out is not None and self.norm is not None:
            read = self.norm(self.conv_out(read))  # (B, C, H, W)
        return x + read

    def macs(self, height: int, width: int) -> int:
        """Convolutions and core, as `Cost` states them."""
        pixels = height * width
        widths = 2 * self.embedding + 1 + self.width + (self.width if self.conv_out is not None else 0)
        return pixels * self.channels * widths + self.core.macs(pixels, self.embedding, self.width)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, 1, H, W)` of both terms over the values, the pairwise one times `gamma` where there is one."""
        self.expect_position(x, position)
        height, width = x.shape[-2:]
        index = position[0] * width + position[1]
        query, key = (_whiten(merge_positions(conv(x))) for conv in (self.query, self.key))
        pairs = self.core.rows(query[:, :, index : index + 1], key)  # (B, 1, N)
        if self.gamma is not None:
            pairs = self.gamma * pairs
        weights = pairs + torch.softmax(merge_positions(self.mask(x)), dim=2)
        return weights.reshape(-1, 1, height, width)  # (B, 1, H, W)
