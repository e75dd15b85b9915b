"""Matrix decompositions, which rebuild a map from a few bases fitted to each image, and the one of Hamburger."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.interface import merge_positions

Gradient = Literal["one_step", "through_time"]

# Keeps divisions finite; the authors' value.
EPSILON = 1e-6


class MatrixDecomposition(nn.Module):
    """Base class: rebuilds the pixels `X` of each image as `X~ = D C^T` from `K` bases `D` that iterations fit to it.

    In evaluation the iterations start from a buffer that is drawn once, under `seed`, and stored in the state dict.

    Args:
        channels: width `C` of the map.
        num_bases: number `K` of bases.
        train_steps: `T` in training.
        eval_steps: `T` in evaluation.
        gradient: `"one_step"`, through the codes that are fitted last alone, or `"through_time"`, through all steps.
        random_bases: whether each forward pass in training draws bases of its own for each image.
        seed: of the stored bases.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`; the buffer `bases` is `(1, C, K)`.

    Raises:
        ValueError: if an argument is outside its range.
    """

    non_negative: ClassVar[bool] = False
    """Whether pixels and bases have to be non-negative."""

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
        draw = torch.rand if self.non_negative else torch.randn
        generator = torch.Generator().manual_seed(seed)
        drawn = draw((1, channels, num_bases), generator=generator, device="cpu")
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

    @abstractmethod
    def factorise(self, pixels: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Bases after `steps` steps, and the codes that are then fitted to them.

        Shape:
            `(B, C, N) -> (B, C, K), (B, N, K)`.
        """

    @abstractmethod
    def shares(self, pixels: Tensor, steps: int) -> Tensor:
        """How far each pixel belongs to each basis after `steps` steps: `(B, N, K)`, each row sums to one."""

    @abstractmethod
    def macs(self, pixels: int) -> int:
        """Multiply-accumulates of one image of `N` pixels with the steps of evaluation."""

    def initial(self, pixels: Tensor) -> Tensor:
        """Bases `(B, C, K)` to start from."""
        batch = len(pixels)
        if self.training and self.random_bases:
            draw = torch.rand if self.non_negative else torch.randn
            drawn = draw((batch, *self.bases.shape[1:]), dtype=pixels.dtype, device=pixels.device)
            return F.normalize(drawn, dim=1)
        return self.bases.to(pixels.dtype).expand(batch, -1, -1)

    def seen(self, pixels: Tensor) -> Tensor:
        """The pixels as the iterations see them: for a one-step gradient the iterations are constants."""
        return pixels.detach() if self.gradient == "one_step" else pixels


class NonNegativeFactorization(MatrixDecomposition):
    """Rebuilds non-negative pixels from `K` bases that multiplicative updates fit to each image.

    Equation, from bases `D` and `C = softmax_K(X^T D)`, for `T` steps::

        C <- C * (X^T D) / (C D^T D + eps)
        D <- D * (X C) / (D C^T C + eps)

    then once more `C`, and `X~ = D C^T`.

    Args, Shape, Raises:
        As of `MatrixDecomposition`.

    Cost:
        `(2T + 3) N C K + (2T + 1)(N + C) K^2` multiply-accumulates.

    Source:
        Geng et al., Is Attention Better Than Matrix Decomposition?, ICLR 2021, section 2.2, algorithm 2.
    """

    non_negative = True

    def factorise(self, pixels: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Bases after `steps` steps, and the codes that one further update fits to them."""
        seen = self.seen(pixels)
        bases = self.initial(pixels)
        codes = torch.softmax(torch.bmm(seen.transpose(1, 2), bases), dim=-1)  # (B, N, K)
        for _ in range(steps):
            codes = self.update(seen.transpose(1, 2), codes, bases)
            bases = self.update(seen, bases, codes)
        return bases, self.update(pixels.transpose(1, 2), codes, bases)

    def shares(self, pixels: Tensor, steps: int) -> Tensor:
        """Codes scaled to sum to one; a pixel whose codes all vanish belongs to all bases alike."""
        _, codes = self.factorise(pixels, steps)
        total = codes.sum(dim=-1, keepdim=True)
        return torch.where(total > 0, codes / total, 1 / self.num_bases)

    def macs(self, pixels: int) -> int:
        """First codes, `T` steps, last codes and the rebuilt map."""
        fits = (2 * self.eval_steps + 3) * pixels * self.channels * self.num_bases
        return fits + (2 * self.eval_steps + 1) * (pixels + self.channels) * self.num_bases**2

    @staticmethod
    def update(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Multiplicative update of `left` in `matrix ~ left right^T`: it stays non-negative and fits no worse."""
        fit = torch.bmm(matrix, right)
        present = torch.bmm(left, torch.bmm(right.transpose(1, 2), right))
        return left * fit / (present + EPSILON)
