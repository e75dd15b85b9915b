"""EMA: attention on a few bases that expectation-maximisation fits to each map (EMANet)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source, merge_positions
from operators.registry import register

Update = Literal["unnormalized", "batch_mean", "running_mean"]


def _at_least_float32(x: Tensor) -> Tensor:
    """`x`, or its float32 copy where it is in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _unit(x: Tensor) -> Tensor:
    """`x` with its columns `(B, C, K)` scaled to length 1."""
    return F.normalize(_at_least_float32(x), dim=1)


class EMAModule(nn.Module):
    """Fits `K` bases to the pixels of each image by expectation-maximisation and rebuilds the map from them.

    Equation, for `t = 1 .. T` from the stored bases `mu^(0)`::

        Z^(t)    = softmax_K(lambda X mu^(t-1)^T)                                     E step
        mu_k^(t) = sum_n z_nk^(t) x_n / sum_n z_nk^(t), then mu_k / ||mu_k||          M step
        X~       = Z^(T) mu^(T)                                                       re-estimation

    In training the stored bases follow the fitted ones, `mu^(0) <- (1 - m) mu^(0) + m mean_B mu^(T)`, in
    place and over the images of all processes. The iterations are constants to autograd, as the authors have
    it.

    Args:
        channels: width `C` of the map.
        num_bases: number `K` of bases.
        stages: number `T` of iterations.
        momentum: weight `m` of the new value in the moving average.
        update: what the moving average scales to length 1: nothing (`"unnormalized"`), the mean over the
            batch (`"batch_mean"`), or its own result (`"running_mean"`, which keeps `mu^(0)` on the unit
            sphere).
        inverse_temperature: `lambda`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`; the buffer `bases` is `(1, C, K)`.

    Cost:
        `(2T + 1) N C K` multiply-accumulates.

    Raises:
        ValueError: if an argument is outside its range.

    Source:
        Li et al., "Expectation-Maximization Attention Networks for Semantic Segmentation", ICCV 2019,
        arXiv:1907.13426: responsibility estimation, likelihood maximization, data re-estimation, bases
        maintenance.

    Deviations:
        The paper words the maintenance as `"running_mean"`, the authors' code does `"unnormalized"`, and
        mmsegmentation does `"batch_mean"`, the default. The authors add 1e-6 to the norms; here they are held
        above 1e-12, as in mmsegmentation. Initial bases are normal deviates of unit length; the authors' factor in
        front of the scaling has no effect.

    Example:
        >>> module = EMAModule(8, num_bases=4).eval()
        >>> module(torch.randn(2, 8, 5, 7)).shape
        torch.Size([2, 8, 5, 7])
    """

    bases: Tensor

    def __init__(
        self,
        channels: int,
        *,
        num_bases: int = 64,
        stages: int = 3,
        momentum: float = 0.1,
        update: Update = "batch_mean",
        inverse_temperature: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value in {"channels": channels, "num_bases": num_bases, "stages": stages}.items():
            if value < 1:
                raise ValueError(f"EMAModule: expected {name} >= 1, got {value!r}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"EMAModule: expected momentum in [0, 1], got {momentum!r}")
        if update not in get_args(Update):
            raise ValueError(f"EMAModule: expected update in {get_args(Update)}, got {update!r}")
        if not (math.isfinite(inverse_temperature) and inverse_temperature > 0):
            raise ValueError(f"EMAModule: expected a finite inverse_temperature > 0, got {inverse_temperature!r}")
        self.channels = channels
        self.num_bases = num_bases
        self.stages = stages
        self.momentum = momentum
        self.update: Update = update
        self.inverse_temperature = inverse_temperature
        self.register_buffer("bases", _unit(torch.randn(1, channels, num_bases)))

    def forward(self, x: Tensor) -> Tensor:
        """The map rebuilt from its bases; in training the stored bases move."""
        pixels = merge_positions(x)  # (B, C, N)
        z, mu = self.iterate(pixels)
        if self.training:
            self.track(mu)
        rebuilt = torch.bmm(mu.to(pixels.dtype), z.to(pixels.dtype).transpose(1, 2))  # (B, C, N)
        return rebuilt.reshape(x.shape)

    @torch.no_grad()
    def iterate(self, pixels: Tensor, stages: int | None = None) -> tuple[Tensor, Tensor]:
        """`Z` of the last E step and `mu` of the last M step, after `stages` (by default all) iterations.

        Shape:
            `(B, C, N) -> (B, N, K), (B, C, K)`.
        """
        z = self.expect(pixels, self.bases.expand(pixels.shape[0], -1, -1))
        mu = _unit(self.average(pixels, z))
        for _ in range(1, self.stages if stages is None else stages):
            z = self.expect(pixels, mu)
            mu = _unit(self.average(pixels, z))
        return z, mu

    def expect(self, pixels: Tensor, mu: Tensor) -> Tensor:
        """E step: weights `(B, N, K)` of each pixel over the bases."""
        similarity = torch.bmm(pixels.transpose(1, 2), mu.to(pixels.dtype))  # (B, N, K)
        return torch.softmax(_at_least_float32(similarity) * self.inverse_temperature, dim=2)

    def average(self, pixels: Tensor, z: Tensor) -> Tensor:
        """M step before the scaling to length 1: means `(B, C, K)` of the pixels, weighted by `z`."""
        return torch.bmm(pixels, F.normalize(z, p=1, dim=1).to(pixels.dtype))

    @torch.no_grad()
    def pixel_weights(self, pixels: Tensor, index: int) -> Tensor:
        """Weights `(B, N)` with which the rebuilt pixel `index` is a sum of all pixels."""
        z, _ = self.iterate(pixels)
        lengths = _at_least_float32(self.average(pixels, z)).norm(dim=1, keepdim=True).clamp_min(1e-12)  # (B, 1, K)
        of_bases = F.normalize(z, p=1, dim=1) / lengths  # (B, N, K)
        return torch.bmm(of_bases, z[:, index].unsqueeze(2)).squeeze(2)

    @torch.no_grad()
    def track(self, mu: Tensor) -> None:
        """Moves the stored bases towards the mean of `mu` `(B, C, K)` over the images of all processes."""
        mean = mu.mean(dim=0, keepdim=True)  # (1, C, K)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(mean)
            mean = mean / dist.get_world_size()
        if self.update == "batch_mean":
            mean = _unit(mean)
        self.bases.lerp_(mean.to(self.bases.dtype), self.momentum)
        if self.update == "running_mean":
            self.bases.copy_(_unit(self.bases))


@register
class EMAUnit(AttentionOperator):
    """The block of EMANet: expectation-maximisation attention between two 1x1 convolutions, with a residual.

    Equation: `y = ReLU(x + BN(W_2 ReLU(EM(W_1 x + b_1))))`, with `EM` of `EMAModule`.

    `W_1` and `b_1` are parameters with `requires_grad=False`: no gradient reaches them through the
    iterations, so the authors' optimiser leaves them at their random initialisation, and
    DistributedDataParallel would wait for them.

    Args:
        channels: width `C` of the map.
        num_bases: number `K` of bases.
        stages: number `T` of iterations.
        momentum: weight of the new value in the moving average of the bases.
        update: what the moving average scales to length 1; see `EMAModule`.
        inverse_temperature: `lambda` of the E step.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `N (2 C^2 + (2T + 1) C K)` multiply-accumulates; `2 C^2 + C` weights and biases, and `2 C` of the
        normalisation.

    Raises:
        ValueError: if an argument is outside its range.

    Source:
        Li et al., "Expectation-Maximization Attention Networks for Semantic Segmentation", ICCV 2019,
        arXiv:1907.13426, the EMA unit.

    Deviations:
        As in the authors' code and in mmsegmentation no gradient passes the iterations.
        The maintenance of the bases is mmsegmentation's by default; `update` names the authors' and the
        paper's.

    Example:
        >>> unit = EMAUnit(16, num_bases=4).eval()
        >>> unit.responsibilities(torch.randn(2, 16, 5, 7)).shape
        torch.Size([2, 4, 5, 7])
        >>> unit.macs(5, 7) == 5 * 7 * (2 * 16 * 16 + 7 * 16 * 4)
        True
    """

    spec = OperatorSpec(
        name="ema",
        title="EMA",
        source=Source(
            title="Expectation-Maximization Attention Networks for Semantic Segmentation",
            venue="ICCV",
            year=2019,
            url="https://arxiv.org/abs/1907.13426",
            equations="responsibility estimation, likelihood maximization, data re-estimation",
        ),
        reach="global",
        growth=1.0,
        gradient="cut",
        deviations=(
            "The gradient is cut at the iterations, as in the authors' code and in mmsegmentation.",
            "The moving average of the bases normalises the batch mean (mmsegmentation, the default), "
            "nothing (authors' code), or its result (paper): `update`.",
        ),
    )
    core: EMAModule

    def __init__(
        self,
        channels: int,
        *,
        num_bases: int = 64,
        stages: int = 3,
        momentum: float = 0.1,
        update: Update = "batch_mean",
        inverse_temperature: float = 1.0,
    ) -> None:
        super().__init__(channels)
        self.conv_in = nn.Conv2d(channels, channels, 1)
        self.core = EMAModule(
            channels,
            num_bases=num_bases,
            stages=stages,
            momentum=momentum,
            update=update,
            inverse_temperature=inverse_temperature,
        )
        self.conv_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        for conv in (self.conv_in, self.conv_out):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.conv_in.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolution, expectation-maximisation, ReLU, convolution and normalisation, residual, ReLU."""
        self.expect_map(x)
        rebuilt = F.relu(self.core(self.conv_in(x)))
        return F.relu(x + self.norm(self.conv_out(rebuilt)))

    def macs(self, height: int, width: int) -> int:
        """`N (2 C^2 + (2T + 1) C K)`."""
        iterations = (2 * self.core.stages + 1) * self.channels * self.core.num_bases
        return height * width * (2 * self.channels**2 + iterations)

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights `(B, 1, H, W)` with which the rebuilt pixel at `position` sums those of `W_1 x + b_1`."""
        self.expect_position(x, position)
        row, column = position
        index = row * x.shape[3] + column
        weights = self.core.pixel_weights(merge_positions(self.conv_in(x)), index)  # (B, N)
        return weights.reshape(-1, 1, *x.shape[-2:])

    def responsibilities(self, x: Tensor, stage: int = -1) -> Tensor:
        """`Z` `(B, K, H, W)` of iteration `stage`, counted from 0, or from the end where negative.

        Raises:
            IndexError: if there is no such iteration.
        """
        self.expect_map(x)
        stages = self.core.stages
        if not -stages <= stage < stages:
            raise IndexError(f"EMAUnit: expected a stage in [{-stages}, {stages - 1}], got {stage!r}")
        z, _ = self.core.iterate(merge_positions(self.conv_in(x)), stage % stages + 1)
        return z.transpose(1, 2).reshape(len(z), -1, *x.shape[-2:])
