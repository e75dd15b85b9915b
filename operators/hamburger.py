"""Hamburger: a low-rank reconstruction by non-negative matrix factorisation between two 1x1 convolutions."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source, merge_positions
from operators.registry import register

Gradient = Literal["one_step", "through_time"]

# Keeps the divisions of the multiplicative updates finite; the authors' value.
_EPSILON = 1e-6


class NonNegativeFactorization(nn.Module):
    """Rebuilds non-negative pixels from `K` bases that multiplicative updates fit to each image.

    Equation, from bases `D` and `C = softmax_K(X^T D)`, for `T` steps::

        C <- C * (X^T D) / (C D^T D + eps)
        D <- D * (X C) / (D C^T C + eps)

    then once more `C`, and `X~ = D C^T`.

    Args:
        channels: width `C` of the map.
        num_bases: number `K` of bases.
        train_steps: `T` in training.
        eval_steps: `T` in evaluation.
        gradient: `"one_step"`, through the last update of `C` alone, or `"through_time"`, through all updates.
        random_bases: whether each forward pass in training draws bases of its own for each image.
        seed: of the stored bases.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`; the buffer `bases` is `(1, C, K)`.

    Cost:
        `(2T + 3) N C K + (2T + 1)(N + C) K^2` multiply-accumulates.

    Raises:
        ValueError: if an argument is outside its range.

    Source:
        Geng et al., Is Attention Better Than Matrix Decomposition?, ICLR 2021, section 2.2, algorithm 2.
    """

    bases: Tensor

    def __init__(
        self,
        channels: int,
        *,
        num_bases: int = 64,
        train_steps: int = 6,
        eval_steps: int = 7,
        gradient: Gradient = "one_step",
        random_bases: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        if num_bases < 1:
            raise ValueError(f"{owner}: expected num_bases >= 1, got {num_bases!r}")
        for name, steps in {"train_steps": train_steps, "eval_steps": eval_steps}.items():
            if steps < 0:
                raise ValueError(f"{owner}: expected {name} >= 0, got {steps!r}")
        if gradient not in get_args(Gradient):
            raise ValueError(f"{owner}: expected gradient in {get_args(Gradient)}, got {gradient!r}")
        self.channels = channels
        self.num_bases = num_bases
        self.train_steps = train_steps
        self.eval_steps = eval_steps
        self.gradient: Gradient = gradient
        self.random_bases = random_bases
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand((1, channels, num_bases), generator=generator, device="cpu")
        self.register_buffer("bases", F.normalize(drawn.to(torch.get_default_device()), dim=1))

    @property
    def steps(self) -> int:
        """Number `T` of steps in the present mode."""
        return self.train_steps if self.training else self.eval_steps

    def forward(self, x: Tensor) -> Tensor:
        """The map rebuilt from its bases."""
        pixels = merge_positions(x)  # (B, C, N)
        bases, codes = self.factorise(pixels, self.steps)
        return torch.bmm(bases, codes.transpose(1, 2)).reshape(x.shape)

    def factorise(self, pixels: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Bases after `steps` steps, and the codes that one further update fits to them.

        Shape:
            `(B, C, N) -> (B, C, K), (B, N, K)`.
        """
        # A one-step gradient takes the iterations for constants and differentiates the last update.
        seen = pixels.detach() if self.gradient == "one_step" else pixels
        bases = self._initial(pixels)
        codes = torch.softmax(torch.bmm(seen.transpose(1, 2), bases), dim=-1)  # (B, N, K)
        for _ in range(steps):
            codes = self.update(seen.transpose(1, 2), codes, bases)
            bases = self.update(seen, bases, codes)
        return bases, self.update(pixels.transpose(1, 2), codes, bases)

    def _initial(self, pixels: Tensor) -> Tensor:
        batch = len(pixels)
        if self.training and self.random_bases:
            drawn = torch.rand((batch, *self.bases.shape[1:]), dtype=pixels.dtype, device=pixels.device)
            return F.normalize(drawn, dim=1)
        return self.bases.to(pixels.dtype).expand(batch, -1, -1)

    @staticmethod
    def update(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Multiplicative update of `left` in `matrix ~ left right^T`: it stays non-negative and fits no worse."""
        fit = torch.bmm(matrix, right)
        present = torch.bmm(left, torch.bmm(right.transpose(1, 2), right))
        return left * fit / (present + _EPSILON)


@register
class Hamburger(AttentionOperator):
    """Hamburger of HamNet: global context as the low-rank part of the features, by matrix decomposition.

    Equation: `y = ReLU(x + norm(W_u M(ReLU(W_l x + b_l))))`, with the factorisation `M` of `NonNegativeFactorization`.

    In evaluation the bases start from a buffer that is drawn once, under `seed`, and stored in the state dict: the
    same image gives the same output. In training each image starts from bases of its own.

    Args:
        channels: width `C` of the map.
        num_bases: number `K` of bases.
        train_steps: steps of the factorisation in training.
        eval_steps: steps in evaluation.
        gradient: `"one_step"` or `"through_time"`, which keeps every step in memory.
        random_bases: whether training draws the initial bases; otherwise it starts from the stored ones.
        seed: of the stored bases.
        num_groups: groups of a group normalisation in place of the batch normalisation.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `2 N C^2 + (2T + 3) N C K + (2T + 1)(N + C) K^2` multiply-accumulates with `T = eval_steps`.

    Raises:
        ValueError: if an argument is outside its range.

    Source:
        Geng et al., Is Attention Better Than Matrix Decomposition?, ICLR 2021, sections 2.2 and 2.3, algorithm 2.

    Deviations:
        The gradient passes one step, as in the paper and in the authors' first code; their later code and
        mmsegmentation propagate through time. Authors and mmsegmentation draw the bases at every forward pass, in
        evaluation too, so that their outputs are random; here evaluation reads stored bases. The authors' online
        update of stored bases, which runs in evaluation, is left out, as in mmsegmentation. The normalisation is the
        authors' batch normalisation; mmsegmentation's configurations have group normalisation (`num_groups=32`).

    Example:
        >>> operator = Hamburger(16, num_bases=4).eval()
        >>> operator.responsibilities(torch.randn(2, 16, 5, 7)).shape
        torch.Size([2, 4, 5, 7])
    """

    spec = OperatorSpec(
        name="hamburger",
        title="Hamburger",
        source=Source(
            title="Is Attention Better Than Matrix Decomposition?",
            venue="ICLR",
            year=2021,
            url="https://arxiv.org/abs/2109.04553",
            equations="sections 2.2 and 2.3, algorithm 2",
        ),
        reach="global",
        growth=1.0,
        gradient="cut",
        deviations=(
            "The gradient passes one step (paper) instead of all (mmsegmentation): `gradient`.",
            "Evaluation starts from stored bases; authors and mmsegmentation draw them at every forward pass.",
            "The output is batch normalised (authors); mmsegmentation normalises groups: `num_groups`.",
        ),
    )
    core: NonNegativeFactorization

    def __init__(
        self,
        channels: int,
        *,
        num_bases: int = 64,
        train_steps: int = 6,
        eval_steps: int = 7,
        gradient: Gradient = "one_step",
        random_bases: bool = True,
        seed: int = 0,
        num_groups: int | None = None,
    ) -> None:
        super().__init__(channels)
        if num_groups is not None and (num_groups < 1 or channels % num_groups):
            raise ValueError(f"Hamburger: expected num_groups that divides {channels} channels, got {num_groups!r}")
        self.lower = nn.Conv2d(channels, channels, 1)
        self.core = NonNegativeFactorization(
            channels,
            num_bases=num_bases,
            train_steps=train_steps,
            eval_steps=eval_steps,
            gradient=gradient,
            random_bases=random_bases,
            seed=seed,
        )
        self.upper = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels) if num_groups is None else nn.GroupNorm(num_groups, channels)
        for conv in (self.lower, self.upper):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Convolution, ReLU, factorisation, convolution and normalisation, residual, ReLU."""
        self.expect_map(x)
        rebuilt = self.core(F.relu(self.lower(x)))
        return F.relu(x + self.norm(self.upper(rebuilt)))

    def macs(self, height: int, width: int) -> int:
        """Two convolutions, and the factorisation with the steps of evaluation."""
        pixels, bases, steps = height * width, self.core.num_bases, self.core.eval_steps
        fits = (2 * steps + 3) * pixels * self.channels * bases
        return 2 * pixels * self.channels**2 + fits + (2 * steps + 1) * (pixels + self.channels) * bases**2

    def responsibilities(self, x: Tensor, stage: int = -1) -> Tensor:
        """Codes `(B, K, H, W)` after update `stage`, scaled to sum to one; from 0, or from the end where negative.

        A pixel whose codes all vanish belongs to all bases alike.

        Raises:
            IndexError: if there is no such update.
        """
        self.expect_map(x)
        updates = self.core.steps + 1
        if not -updates <= stage < updates:
            raise IndexError(f"Hamburger: expected a stage in [{-updates}, {updates - 1}], got {stage!r}")
        _, codes = self.core.factorise(merge_positions(F.relu(self.lower(x))), stage % updates)
        total = codes.sum(dim=-1, keepdim=True)
        shares = torch.where(total > 0, codes / total, 1 / self.core.num_bases)
        return shares.transpose(1, 2).reshape(len(x), -1, *x.shape[-2:])
