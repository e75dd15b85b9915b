"""Compact generalised non-local block: every channel of every pixel reads every channel of every pixel (CGNL)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source, divide_channels, merge_positions
from operators.registry import register

Kernel = Literal["dot_product", "gaussian"]


class TaylorKernel(nn.Module):
    """Sums over all positions and channels of a group, weighted by a kernel that a few powers span; no parameters.

    Equation: `y_i = sum_p alpha_p^2 theta_i^p z_p` with `z_p = sum_j phi_j^p g_j`, where `i` and `j` run over the
    `M = N d / G` pairs of position and channel of a group. The dot product has `p = 1` and `alpha_1 = 1`. The
    Gaussian `exp(-gamma (theta_i - phi_j)^2)` has `p = 0, ..., P` and `alpha_p^2 = beta (2 gamma)^p / p!`, with the
    constant `beta = exp(-2 gamma)` in place of `exp(-gamma (theta_i^2 + phi_j^2))`.

    Args:
        kernel: `"dot_product"` or `"gaussian"`.
        order: `P`, where the Taylor series of the Gaussian ends.
        gamma: inverse width of the Gaussian.
        num_groups: `G`.
        scale: whether the sums `z` are divided by `sqrt(M)`.

    Shape:
        `theta (B, d, N), phi (B, d, N), g (B, d, N) -> (B, d, N)`.

    Cost:
        `2 N d` multiply-accumulates for each power.
    """

    def __init__(self, kernel: Kernel, *, order: int, gamma: float, num_groups: int, scale: bool) -> None:
        super().__init__()
        self.powers: tuple[int, ...] = (1,) if kernel == "dot_product" else tuple(range(order + 1))
        self.coefficients: tuple[float, ...] = (1.0,)
        if kernel == "gaussian":
            squares = (math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in self.powers)
            self.coefficients = tuple(math.sqrt(square) for square in squares)
        self.num_groups = num_groups
        self.scale = scale

    def forward(self, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        """The sums `y`."""
        z = torch.bmm(self.expand(phi), self._groups(g).transpose(1, 2))  # (B G, P + 1, 1)
        if self.scale:
            z = z / math.sqrt(g[0].numel() // self.num_groups)
        return torch.bmm(z.transpose(1, 2), self.expand(theta)).reshape(theta.shape)

    def expand(self, x: Tensor) -> Tensor:
        """Powers of `(B, d, N)`, times `alpha`, as `(B G, P + 1, M)`."""
        grouped = self._groups(x)
        return torch.cat(
            [alpha * grouped**p for alpha, p in zip(self.coefficients, self.powers, strict=True)],
            dim=1,
        )

    def _groups(self, x: Tensor) -> Tensor:
        """`(B, d, N) -> (B G, 1, M)`."""
        return x.reshape(len(x) * self.num_groups, 1, -1)


@register
class CompactGeneralizedNonLocal(AttentionOperator):
    """CGNL block: attention among all pairs of position and channel, at a cost linear in their number.

    Equation: `y = x + GN(W_z y')` with `y'` of `TaylorKernel`, `theta = W_theta x`, `phi = W_phi x` and `g = W_g x`,
    all without bias. `W_z` maps each of `G` groups by itself, and the group normalisation has the same groups.

    Args:
        channels: width `C` of the map.
        reduction: divisor of the width inside the block, `d = C / reduction`.
        kernel: `"dot_product"` or `"gaussian"`.
        order: `P`, where the Taylor series of the Gaussian ends; the dot product has none.
        gamma: inverse width of the Gaussian; the dot product has none.
        num_groups: `G`, groups of channels that attend among themselves.
        scale: whether the sums over positions and channels are divided by the square root of their number.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `3 N C d + N C d / G + 2 N d` multiply-accumulates; with the Gaussian, `2 N d (P + 1)` in place of `2 N d`.

    Raises:
        ValueError: if an argument is outside its range, `reduction` does not divide `channels`, or `num_groups` does
            not divide the width inside the block.

    Source:
        Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018, arXiv:1810.13125, the generalised non-local
        operation, its compact representation, and its groups.

    Deviations:
        The output is group normalised as in the authors' code; the paper has batch normalisation. With as many groups
        as the kernel, this normalisation undoes the size of the dot product's only sum: of what a group reads, the
        block keeps the sign. `beta` is a constant as in the paper and in the authors' code, exact where `theta_i` and
        `phi_j` have size 1, to which the code does not scale them either. `gamma` is a constant there, a setting here.

    Example:
        >>> block = CompactGeneralizedNonLocal(16)
        >>> x = torch.randn(2, 16, 5, 7)
        >>> torch.equal(block(x), x)
        True
    """

    spec = OperatorSpec(
        name="compact_generalized_non_local",
        title="CGNL",
        source=Source(
            title="Compact Generalized Non-local Network",
            venue="NeurIPS",
            year=2018,
            url="https://arxiv.org/abs/1810.13125",
            equations="generalized non-local operation, compact representation, implementation strategy",
        ),
        reach="global",
        growth=1.0,
        deviations=(
            "The output is group normalised (authors' code), where the paper has batch normalisation.",
            "The Gaussian's factor exp(-gamma (theta^2 + phi^2)) is the constant exp(-2 gamma), as in paper and code; "
            "as in the code, nothing scales theta and phi to size 1, where it would be exact.",
        ),
    )
    core: TaylorKernel

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 2,
        kernel: Kernel = "dot_product",
        order: int = 3,
        gamma: float = 1e-4,
        num_groups: int = 8,
        scale: bool = False,
    ) -> None:
        super().__init__(channels)
        owner = "CompactGeneralizedNonLocal"
        if kernel not in get_args(Kernel):
            raise ValueError(f"{owner}: expected kernel in {get_args(Kernel)}, got {kernel!r}")
        if order < 0:
            raise ValueError(f"{owner}: expected order >= 0, got {order!r}")
        if not 0 < gamma < math.inf:
            raise ValueError(f"{owner}: expected a finite gamma > 0, got {gamma!r}")
        self.width = divide_channels(owner, channels, reduction)
        if num_groups < 1 or self.width % num_groups:
            raise ValueError(f"{owner}: expected num_groups >= 1 that divides {self.width}, got {num_groups!r}")
        self.theta = nn.Conv2d(channels, self.width, 1, bias=False)
        self.phi = nn.Conv2d(channels, self.width, 1, bias=False)
        self.g = nn.Conv2d(channels, self.width, 1, bias=False)
        self.core = TaylorKernel(kernel, order=order, gamma=gamma, num_groups=num_groups, scale=scale)
        self.conv_out = nn.Conv2d(self.width, channels, 1, groups=num_groups, bias=False)
        self.norm = nn.GroupNorm(num_groups, channels)
        for conv in (self.theta, self.phi, self.g, self.conv_out):
            nn.init.normal_(conv.weight, std=0.01)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Input plus what all pairs of position and channel read."""
        self.expect_map(x)
        theta, phi, g = (merge_positions(conv(x)) for conv in (self.theta, self.phi, self.g))  # (B, d, N)
        read = self.core(theta, phi, g).reshape(len(x), -1, *x.shape[-2:])
        out: Tensor = x + self.norm(self.conv_out(read))
        return out

    def macs(self, height: int, width: int) -> int:
        """Four convolutions, the last in groups, and two products for each power."""
        pixels = height * width
        convolutions = 3 * self.channels * self.width + self.channels * self.width // self.core.num_groups
        return pixels * (convolutions + 2 * self.width * len(self.core.powers))
