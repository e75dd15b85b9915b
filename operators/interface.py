"""The contract: what an attention operator is, and what it declares about itself.

An operator is a plain `nn.Module` from `(B, C, H, W)` to `(B, C, H, W)` for any `H` and `W`. It owns everything that
its paper draws inside the block (projections, normalisation, padding, residual); the slot that it sits in adds
nothing.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

Reach = Literal["pixel", "window", "axis", "global"]
Gradient = Literal["exact", "cut"]
Kind = Literal["attention", "context", "control"]
Implementation = Literal["reference", "fused"]
Target = Literal["pixel", "presence"]


@dataclass(frozen=True)
class Source:
    """Where an operator comes from.

    Args:
        title: title of the paper.
        venue: where it appeared, for example `"ICCV"`.
        year: year of that appearance.
        url: the page of the paper.
        equations: the equations or the figure that the code follows.
    """

    title: str
    venue: str
    year: int
    url: str
    equations: str = ""


@dataclass(frozen=True)
class Auxiliary:
    """An extra loss that an operator is trained with.

    Args:
        target: `"pixel"` for logits `(B, classes, H, W)` against the label map, `"presence"` for logits `(B, classes)`
            against the classes that occur in the image.
        weight: weight of the loss in the sum.
    """

    target: Target
    weight: float


def _no_entries() -> Mapping[str, str]:
    return MappingProxyType({})


def _no_auxiliary() -> Mapping[str, Auxiliary]:
    return MappingProxyType({})


@dataclass(frozen=True)
class OperatorSpec:
    """What an operator declares; every claim is held against the code by `operators.checks`.

    Args:
        name: registry name, lower case with underscores.
        title: name in tables and figures.
        source: the paper.
        reach: which input pixels one output pixel depends on, at default settings; `"axis"` is whole rows or columns,
            bands of several included, and a window around the pixel.
        growth: exponent of the cost in `N = H*W` for square maps, in the limit (0 where nothing is multiplied).
        kind: `"attention"`, `"context"` (long reach without attention) or `"control"`.
        gradient: `"exact"`, or `"cut"` where the authors stop it inside the operator.
        implementations: which values of `implementation` the constructor takes.
        auxiliary: name of each extra loss -> its target and weight.
        deviations: where paper, authors' code and mmsegmentation disagree, and what is the default here; one sentence
            each.
        expected_failures: name of a check -> why it cannot pass.

    Raises:
        ValueError: if a value is outside its vocabulary.
    """

    name: str
    title: str
    source: Source
    reach: Reach
    growth: float
    kind: Kind = "attention"
    gradient: Gradient = "exact"
    implementations: tuple[Implementation, ...] = ("reference",)
    auxiliary: Mapping[str, Auxiliary] = field(default_factory=_no_auxiliary)
    deviations: tuple[str, ...] = ()
    expected_failures: Mapping[str, str] = field(default_factory=_no_entries)

    def __post_init__(self) -> None:
        vocabularies = {"reach": Reach, "kind": Kind, "gradient": Gradient}
        for attribute, vocabulary in vocabularies.items():
            value = getattr(self, attribute)
            if value not in get_args(vocabulary):
                raise ValueError(
                    f"OperatorSpec {self.name!r}: expected {attribute} in {get_args(vocabulary)}, got {value!r}"
                )
        if not self.name.isidentifier() or self.name != self.name.lower():
            raise ValueError(f"OperatorSpec: expected a lower-case identifier as name, got {self.name!r}")
        if not (math.isfinite(self.growth) and self.growth >= 0):
            raise ValueError(f"OperatorSpec {self.name!r}: expected growth >= 0, got {self.growth!r}")
        unknown = set(self.implementations) - set(get_args(Implementation))
        if unknown or "reference" not in self.implementations:
            raise ValueError(
                f"OperatorSpec {self.name!r}: expected implementations from {get_args(Implementation)} "
                f"with 'reference' among them, got {self.implementations!r}"
            )
        if any(not reason for reason in self.expected_failures.values()):
            raise ValueError(f"OperatorSpec {self.name!r}: expected a reason for each expected failure")


class AttentionOperator(nn.Module):
    """Base class of every operator: `(B, C, H, W) -> (B, C, H, W)`.

    A subclass sets the class attribute `spec`, takes `channels` first and its hyper-parameters by keyword (the paper's
    defaults, no `**kwargs`), and implements `forward` and `macs`. It may name the submodule that is the attention
    itself `core`; the level `core` then measures that submodule on the arguments that the block gives it.

    Args:
        channels: `C`, width of input and output.

    Raises:
        ValueError: if `channels` is not a positive integer.
    """

    spec: ClassVar[OperatorSpec]
    channels: int
    core: nn.Module

    def __init__(self, channels: int) -> None:
        super().__init__()
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"{type(self).__name__}: expected channels >= 1, got {channels!r}")
        self.channels = channels

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Maps features `(B, C, H, W)` to features of the same shape."""

    @abstractmethod
    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of one image in closed form.

        Counted are the products of convolutions, linear maps, matrix products and inverses (`n^3`), padding included;
        normalisation, softmax, pooling, resize and elementwise work are not.
        """

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Output, and the logits of each extra loss in `spec.auxiliary`."""
        return self(x), {}

    def attention(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Effective weights `(B, heads, H, W)` with which the output at `position` reads; zero outside the reach."""
        raise NotImplementedError(
            f"{type(self).__name__}: expected an operator with attention weights; it has none to show"
        )

    def responsibilities(self, x: Tensor, stage: int = -1) -> Tensor:
        """Weights `(B, K, H, W)` of each pixel over the `K` bases, codewords or regions."""
        raise NotImplementedError(f"{type(self).__name__}: expected an operator with bases; it has none to show")

    def expect_map(self, x: Tensor) -> None:
        """Raises a `ValueError` that names what was expected unless `x` is `(B, C, H, W)` with this operator's `C`."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"{type(self).__name__}: expected (B, {self.channels}, H, W), got {tuple(x.shape)}")

    def expect_position(self, x: Tensor, position: tuple[int, int]) -> None:
        """Raises an `IndexError` unless `position` (row, column) lies on the map `x`."""
        self.expect_map(x)
        height, width = x.shape[-2:]
        row, column = position
        if not (0 <= row < height and 0 <= column < width):
            raise IndexError(
                f"{type(self).__name__}: expected a position on the {height}x{width} map, got {tuple(position)}"
            )


class PairOperator(nn.Module):
    """Base class of operators on two feature levels: `(B, C, H, W), (B, L, H', W') -> (B, C, H, W)`.

    It is an operator in all but its second input; as slots have one map, it is not registered.

    Args:
        channels: `C`, width of the high level and of the output.
        low_channels: `L`, width of the low level.

    Raises:
        ValueError: if one of them is not a positive integer.
    """

    spec: ClassVar[OperatorSpec]
    channels: int
    low_channels: int
    core: nn.Module

    def __init__(self, channels: int, low_channels: int) -> None:
        super().__init__()
        for name, value in {"channels": channels, "low_channels": low_channels}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{type(self).__name__}: expected {name} >= 1, got {value!r}")
        self.channels = channels
        self.low_channels = low_channels

    @abstractmethod
    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """Maps the high level `(B, C, H, W)` to its own shape, with what it reads from the low level."""

    @abstractmethod
    def macs(self, high: tuple[int, int], low: tuple[int, int]) -> int:
        """Multiply-accumulates of one image whose levels have these heights and widths."""

    def expect_maps(self, high: Tensor, low: Tensor) -> None:
        """Raises a `ValueError` that names what was expected unless both maps fit this operator."""
        widths = (self.channels, self.low_channels)
        fit = all(x.ndim == 4 and x.shape[1] == width for x, width in zip((high, low), widths, strict=True))
        if not fit or len(high) != len(low):
            raise ValueError(
                f"{type(self).__name__}: expected (B, {self.channels}, H, W) and (B, {self.low_channels}, H', W'), "
                f"got {tuple(high.shape)} and {tuple(low.shape)}"
            )


def divide_channels(owner: str, channels: int, reduction: int) -> int:
    """`channels / reduction`, or an error that says which channels fit.

    Raises:
        ValueError: if `reduction` does not divide `channels`.

    Example:
        >>> divide_channels("NonLocal", 512, 2)
        256
    """
    if reduction < 1 or channels % reduction:
        raise ValueError(f"{owner}: expected channels divisible by the reduction {reduction}, got {channels}")
    return channels // reduction


def has_core(operator: nn.Module) -> bool:
    """Whether `operator` names the submodule that is the attention itself."""
    return isinstance(getattr(operator, "core", None), nn.Module)


def merge_positions(x: Tensor) -> Tensor:
    """`(B, C, H, W) -> (B, C, N)` with `N = H*W`, in any memory format."""
    return torch.flatten(x, 2)
