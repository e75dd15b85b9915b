"""Non-local block: every pixel reads every pixel (Non-local Neural Networks)."""

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

Pairwise = Literal["embedded_gaussian", "gaussian", "dot_product", "concatenation"]


class NonLocalAggregation(nn.Module):
    """The map of pairwise weights and the sum that it weighs.

    Equation: `y_i = 1/C sum_j f(theta_i, phi_j) g_j`, where `f / C` is a softmax over `j` of `theta_i^T
    phi_j` (scaled or not), `theta_i^T phi_j / M`, or `ReLU(w^T [theta_i, phi_j]) / M`, over `M` positions.

    Args:
        pairwise: which of them.
        embedding: width `d` of `theta` and `phi`.
        scale: whether the softmax divides by `sqrt(d)`; the embedded Gaussian alone has a scale.
        implementation: `"reference"` builds the `N x M` map, `"fused"` does not.

    Shape:
        `theta (B, d, N), phi (B, d, M), g (B, D, M) -> (B, D, N)`.

    Cost:
        `N M (d + D)` multiply-accumulates; `N M D + (N + M) d` for the concatenation; `(N + M) d D` for the
        fused dot product.
    """

    def __init__(self, pairwise: Pairwise, embedding: int, *, scale: bool, implementation: Implementation) -> None:
        super().__init__()
        self.pairwise = pairwise
        self.embedding = embedding
        self.factor = 1 / math.sqrt(embedding) if scale and pairwise == "embedded_gaussian" else 1.0
        self.fused = implementation == "fused"
        if pairwise == "concatenation":
            self.concat = nn.Conv1d(2 * embedding, 1, 1, bias=False)

    def forward(self, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        """The sums `y`."""
        queries, values = theta.transpose(1, 2), g.transpose(1, 2)  # (B, N, d), (B, M, D)
        if not self.fused:
            return torch.bmm(self.weights(theta, phi), values).transpose(1, 2)
        if self.pairwise == "dot_product":
            return torch.bmm(queries, torch.bmm(phi / phi.shape[2], values)).transpose(1, 2)
        keys = phi.transpose(1, 2)  # (B, M, d)
        # On CPU the kernel that never builds the map asks for rows that lie together.
        query, key, value = (part.unsqueeze(1).contiguous() for part in (queries, keys, values))  # (B, 1, N, d)
        out = F.scaled_dot_product_attention(query, key, value, scale=self.factor)
        return out.squeeze(1).transpose(1, 2)

    def weights(self, theta: Tensor, phi: Tensor) -> Tensor:
        """The map `(B, N, M)` of weights."""
        positions = phi.shape[2]
        if self.pairwise == "concatenation":
            of_theta, of_phi = (
                self.concat.weight[:, : self.embedding],
                self.concat.weight[:, self.embedding :],
            )
            pairs = F.conv1d(theta, of_theta).transpose(1, 2) + F.conv1d(phi, of_phi)  # (B, N, M)
            return F.relu(pairs) / positions
        similarity = torch.bmm(theta.transpose(1, 2), phi)  # (B, N, M)
        if self.pairwise == "dot_product":
            return similarity / positions
        return torch.softmax(similarity * self.factor, dim=2)

    def macs(self, queries: int, positions: int, width: int) -> int:
        """Multiply-accumulates for `N` queries that read `M` positions of `D` channels."""
        if self.pairwise == "concatenation":
            return queries * positions * width + (queries + positions) * self.embedding
        if self.pairwise == "dot_product" and self.fused:
            return (queries + positions) * self.embedding * width
        return queries * positions * (self.embedding + width)


@register
class NonLocal(AttentionOperator):
    """Non-local block: each pixel adds a weighted sum over all pixels.

    Equation: `z_i = x_i + BN(W_z y_i)`, `y_i = 1/C(x) sum_j f(x_i, x_j) g(x_j)` with `g(x_j) = W_g x_j + b_g`
    and, for `theta` and `phi` likewise, one of::

        embedded_gaussian    f = exp(theta_i^T phi_j / sqrt(d)),    C = sum_j f
        gaussian             f = exp(x_i^T x_j),                    C = sum_j f
        dot_product          f = theta_i^T phi_j,                   C = M
        concatenation        f = ReLU(w^T [theta_i, phi_j]),        C = M

    Args:
        channels: width `C` of the map.
        reduction: divisor of the width inside the block, `d = C / reduction`.
        pairwise: the function `f`.
        scale: whether the embedded Gaussian divides by `sqrt(d)`; the other functions have no scale.
        subsample: whether `phi` and `g` are max-pooled by 2, so that `M = N / 4` positions are read instead
            of `N`.
        norm: whether `W_z` is followed by batch normalisation; otherwise it has a bias.
        implementation: `"reference"` builds the `N x M` map. `"fused"` computes the softmaxes with
            `scaled_dot_product_attention` and the dot product as `theta (phi^T g)`; the concatenation has
            none.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `4 N C d + 2 N M d` multiply-accumulates; `2 N C d + N M (C + d)` for the Gaussian,
        `4 N C d + N M d + (N + M) d` for the concatenation, `4 N C d + (N + M) d^2` for the fused dot
        product.

    Raises:
        ValueError: if `reduction` does not divide `channels`, `pairwise` or `implementation` is unknown, or
            the concatenation is asked for as `"fused"`.

    Source:
        Wang et al., "Non-local Neural Networks", CVPR 2018, arXiv:1711.07971, Eq. 1-6.

    Deviations:
        The paper's Eq. 3 has no scale, mmsegmentation divides by `sqrt(d)`, the authors' code may: `scale`.
        The authors pool before `phi` and `g`, the paper and mmsegmentation after them: after.
        A side of length 1 is not pooled, so that any size works.
        `w^T [theta_i, phi_j]` is taken as the sum of two products: the same function without a `(2d, N, M)`
        tensor.

    Example:
        >>> block = NonLocal(8)
        >>> x = torch.randn(2, 8, 5, 7)
        >>> torch.equal(block(x), x)
        True
        >>> round(block.attention(x, (0, 0))[0].sum().item(), 4)
        1.0
    """

    spec = OperatorSpec(
        name="non_local",
        title="Non-local",
        source=Source(
            title="Non-local Neural Networks",
            venue="CVPR",
            year=2018,
            url="https://arxiv.org/abs/1711.07971",
            equations="Eq. 1-6",
        ),
        reach="global",
        growth=2.0,
        implementations=("reference", "fused"),
        deviations=(
            "The embedded Gaussian is scaled by 1/sqrt(d) as in mmsegmentation, not in the paper: `scale`.",
            "`subsample` pools after phi and g as the paper and mmsegmentation do; the authors pool first.",
            "The concatenation's product is split in two, which never builds a (2d, N, M) tensor.",
        ),
    )
    core: NonLocalAggregation

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 2,
        pairwise: Pairwise = "embedded_gaussian",
        scale: bool = True,
        subsample: bool = False,
        norm: bool = True,
        implementation: Implementation = "reference",
    ) -> None:
        super().__init__(channels)
        if pairwise not in get_args(Pairwise):
            raise ValueError(f"NonLocal: expected pairwise in {get_args(Pairwise)}, got {pairwise!r}")
        if implementation not in self.spec.implementations:
            raise ValueError(
                f"NonLocal: expected implementation in {self.spec.implementations}, got {implementation!r}"
            )
        if pairwise == "concatenation" and implementation == "fused":
            raise ValueError("NonLocal: expected implementation 'reference' for the concatenation, got 'fused'")
        self.width = divide_channels("NonLocal", channels, reduction)
        self.pairwise = pairwise
        self.subsample = subsample
        self.g = nn.Conv2d(channels, self.width, 1)
        if pairwise != "gaussian":
            self.theta = nn.Conv2d(channels, self.width, 1)
            self.phi = nn.Conv2d(channels, self.width, 1)
        embedding = channels if pairwise == "gaussian" else self.width
        self.core = NonLocalAggregation(pairwise, embedding, scale=scale, implementation=implementation)
        self.conv_out = nn.Conv2d(self.width, channels, 1, bias=not norm)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        last = self.norm if isinstance(self.norm, nn.BatchNorm2d) else self.conv_out
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Input plus what the block reads."""
        self.expect_map(x)
        theta, phi = self._embed(x)
        g = merge_positions(self._pool(self.g(x)))  # (B, d, M)
        y = self.core(merge_positions(theta), merge_positions(phi), g)  # (B, d, N)
        out: Tensor = x + self.norm(self.conv_out(y.reshape(len(y), -1, *x.shape[-2:])))
        return out

    def _embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.pairwise == "gaussian":
            return x, self._pool(x)
        return self.theta(x), self._pool(self.phi(x))

    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self._cell(*x.shape[-2:])) if self.subsample else x

    def _cell(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the cells that pooling leaves of the map."""
        return (min(2, height), min(2, width)) if self.subsample else (1, 1)

    def macs(self, height: int, width: int) -> int:
        """Convolutions and core, as `Cost` states them."""
        pixels = height * width
        tall, wide = self._cell(height, width)
        positions = (height // tall) * (width // wide)
        convolutions = (2 if self.pairwise == "gaussian" else 4) * pixels * self.channels * self.width
        return convolutions + self.core.macs(pixels, positions, self.width)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, 1, H, W)` over the pixels of `g`; a pooled cell's weight is spread over its pixels."""
        self.expect_position(x, position)
        height, width = x.shape[-2:]
        row, column = position
        theta, phi = self._embed(x)
        weights = self.core.weights(theta[:, :, row, column].unsqueeze(2), merge_positions(phi))  # (B, 1, M)
        cells = weights.reshape(-1, 1, *phi.shape[-2:])  # (B, 1, rows, columns)
        tall, wide = self._cell(height, width)
        spread = cells.repeat_interleave(tall, dim=2).repeat_interleave(wide, dim=3) / (tall * wide)
        return F.pad(spread, (0, width - spread.shape[3], 0, height - spread.shape[2]))  # (B, 1, H, W)
