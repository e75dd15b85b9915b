"""Hamburger: a low-rank reconstruction by a matrix decomposition between two 1x1 convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from operators.interface import AttentionOperator, OperatorSpec, Source, merge_positions
from operators.matrix_decomposition import Gradient, MatrixDecomposition
from operators.matrix_decomposition import NonNegativeFactorization as NonNegativeFactorization
from operators.registry import register
from operators.soft_clustering import ConceptDecomposition, VectorQuantization

_SOURCE = Source(
    title="Is Attention Better Than Matrix Decomposition?",
    venue="ICLR",
    year=2021,
    url="https://arxiv.org/abs/2109.04553",
    equations="sections 2.2 and 2.3, algorithms 1 and 2",
)
_DEVIATIONS = (
    "Evaluation starts from stored bases; authors and mmsegmentation draw them at every forward pass.",
    "The output is batch normalised (authors' first version); mmsegmentation normalises groups: `num_groups`.",
)
_CLUSTERING_DEVIATIONS = (
    "The gradient passes the last codes alone, as in the authors' first code: `gradient`.",
    "The assignment that the authors compute in front of the first step and never read is left out.",
    "Norms are kept above 1e-6 at each step; the authors add 1e-6 to them at the last.",
    *_DEVIATIONS,
)


class _Hamburger(AttentionOperator):
    """`y = ReLU(x + norm(W_u M(W_l x + b_l)))`, with a ReLU in front of an `M` that takes non-negative pixels."""

    core: MatrixDecomposition

    def __init__(self, channels: int, num_groups: int | None) -> None:
        super().__init__(channels)
        if num_groups is not None and (num_groups < 1 or channels % num_groups):
            raise ValueError(
                f"{type(self).__name__}: expected num_groups that divides {channels} channels, got {num_groups!r}"
            )
        self.lower = nn.Conv2d(channels, channels, 1)
        self.upper = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels) if num_groups is None else nn.GroupNorm(num_groups, channels)
        for conv in (self.lower, self.upper):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Convolution, decomposition, convolution and normalisation, residual, ReLU."""
        self.expect_map(x)
        return torch.relu(x + self.norm(self.upper(self.core(self._embed(x)))))

    def macs(self, height: int, width: int) -> int:
        """Two convolutions, and the decomposition with the steps of evaluation."""
        pixels = height * width
        return 2 * pixels * self.channels**2 + self.core.macs(pixels)

    def responsibilities(self, x: Tensor, stage: int = -1) -> Tensor:
        """How far each pixel belongs to each basis, `(B, K, H, W)`, after step `stage`; from 0, or from the end.

        Raises:
            IndexError: if there is no such step.
        """
        self.expect_map(x)
        stages = self.core.steps + 1
        if not -stages <= stage < stages:
            raise IndexError(f"{type(self).__name__}: expected a stage in [{-stages}, {stages - 1}], got {stage!r}")
        shares = self.core.shares(merge_positions(self._embed(x)), stage % stages)
        return shares.transpose(1, 2).reshape(len(x), -1, *x.shape[-2:])

    def _embed(self, x: Tensor) -> Tensor:
        lower: Tensor = self.lower(x)
        return torch.relu(lower) if self.core.non_negative else lower


@register
class Hamburger(_Hamburger):
    """Hamburger of HamNet: global context as the low-rank part of the features, by matrix decomposition.

    Equation: `y = ReLU(x + norm(W_u M(ReLU(W_l x + b_l))))`, with the factorisation `M` of `NonNegativeFactorization`.

    Evaluation starts from stored bases: the same image gives the same output. Training draws bases for each image.

    Args:
        channels: width `C` of the map.
        num_bases: number `K` of bases.
        train_steps, eval_steps: steps of the factorisation in training and in evaluation.
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
        evaluation too, so that their outputs are random; here evaluation reads stored bases. The authors' update of
        stored bases in evaluation is left out, as in mmsegmentation. The output is normalised, behind the upper
        convolution, as in the first of the authors' three versions and in mmsegmentation; the others have a convolution
        with normalisation and ReLU between the decomposition and the upper convolution instead. The normalisation is
        the authors' batch normalisation; mmsegmentation's configurations have group normalisation (`num_groups=32`).

    Example:
        >>> Hamburger(16, num_bases=4).eval().responsibilities(torch.randn(2, 16, 5, 7)).shape
        torch.Size([2, 4, 5, 7])
    """

    spec = OperatorSpec(
        name="hamburger",
        title="Hamburger",
        source=_SOURCE,
        reach="global",
        growth=1.0,
        gradient="cut",
        deviations=("The gradient passes one step (paper) instead of all (mmsegmentation): `gradient`.", *_DEVIATIONS),
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
        super().__init__(channels, num_groups)
        self.core = NonNegativeFactorization(
            channels,
            num_bases=num_bases,
            train_steps=train_steps,
            eval_steps=eval_steps,
            gradient=gradient,
            random_bases=random_bases,
            seed=seed,
        )


@register
class VectorQuantizationHamburger(_Hamburger):
    """Hamburger by soft vector quantisation: each pixel becomes a mixture of the image's cluster means.

    Equation: `y = ReLU(x + norm(W_u M(W_l x + b_l)))`, with the decomposition `M` of `VectorQuantization`; no ReLU in
    front of it, for pixels of either sign.

    Args:
        channels: width `C` of the map.
        inv_t: inverse temperature of the assignment.
        others: as of `Hamburger`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `2 N C^2 + (2T + 2) N C K` multiply-accumulates with `T = eval_steps`.

    Raises:
        ValueError: if an argument is outside its range.

    Source:
        Geng et al., Is Attention Better Than Matrix Decomposition?, ICLR 2021, sections 2.2 and 2.3, appendix.

    Deviations:
        The gradient passes the last codes alone, with constant norms of the pixels, as in the authors' first code.
        The assignment that they compute in front of the first step and never read is left out. Norms are kept above
        1e-6, where they add 1e-6 to those of the last. Under autocast the assignment is computed in float32. Bases
        and normalisation are as of `Hamburger`.

    Example:
        >>> VectorQuantizationHamburger(16, num_bases=4).eval()(torch.randn(2, 16, 5, 7)).shape
        torch.Size([2, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="hamburger_vq",
        title="Hamburger (VQ)",
        source=_SOURCE,
        reach="global",
        growth=1.0,
        gradient="cut",
        deviations=_CLUSTERING_DEVIATIONS,
        expected_failures={
            "autocast": "Clusters of noise tip at inv_t = 100 when the first convolution alone is rounded to bfloat16."
        },
    )
    core: VectorQuantization

    def __init__(
        self,
        channels: int,
        *,
        num_bases: int = 64,
        train_steps: int = 6,
        eval_steps: int = 7,
        inv_t: float = 100.0,
        gradient: Gradient = "one_step",
        random_bases: bool = True,
        seed: int = 0,
        num_groups: int | None = None,
    ) -> None:
        super().__init__(channels, num_groups)
        self.core = VectorQuantization(
            channels,
            num_bases=num_bases,
            train_steps=train_steps,
            eval_steps=eval_steps,
            inv_t=inv_t,
            gradient=gradient,
            random_bases=random_bases,
            seed=seed,
        )


@register
class ConceptDecompositionHamburger(_Hamburger):
    """Hamburger by concept decomposition: each pixel is projected onto the directions of the image's clusters.

    Equation: `y = ReLU(x + norm(W_u M(W_l x + b_l)))`, with the decomposition `M` of `ConceptDecomposition`; no ReLU in
    front of it, for pixels of either sign.

    Args:
        channels: width `C` of the map.
        inv_t: inverse temperature of the assignment.
        beta: weight of the squared codes in the least squares.
        others: as of `Hamburger`.

    Shape:
        `(B, C, H, W) -> (B, C, H, W)`.

    Cost:
        `2 N C^2 + (2T + 2) N C K + (N + C) K^2 + K^3` multiply-accumulates with `T = eval_steps`.

    Raises:
        ValueError: if an argument is outside its range.

    Source:
        Geng et al., Is Attention Better Than Matrix Decomposition?, ICLR 2021, sections 2.2 and 2.3, appendix.

    Deviations:
        As of `VectorQuantizationHamburger`. `beta` is that of the authors' code for segmentation; that for generation
        has 0.01. Under autocast the `K x K` matrix is inverted in float32.

    Example:
        >>> ConceptDecompositionHamburger(16, num_bases=4).eval()(torch.randn(2, 16, 5, 7)).shape
        torch.Size([2, 16, 5, 7])
    """

    spec = OperatorSpec(
        name="hamburger_cd",
        title="Hamburger (CD)",
        source=_SOURCE,
        reach="global",
        growth=1.0,
        gradient="cut",
        deviations=_CLUSTERING_DEVIATIONS,
    )
    core: ConceptDecomposition

    def __init__(
        self,
        channels: int,
        *,
        num_bases: int = 64,
        train_steps: int = 6,
        eval_steps: int = 7,
        inv_t: float = 100.0,
        beta: float = 0.1,
        gradient: Gradient = "one_step",
        random_bases: bool = True,
        seed: int = 0,
        num_groups: int | None = None,
    ) -> None:
        super().__init__(channels, num_groups)
        self.core = ConceptDecomposition(
            channels,
            num_bases=num_bases,
            train_steps=train_steps,
            eval_steps=eval_steps,
            inv_t=inv_t,
            beta=beta,
            gradient=gradient,
            random_bases=random_bases,
            seed=seed,
        )
