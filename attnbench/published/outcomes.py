"""A published row beside what the project computes for it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from attnbench.published.figures import FLOPS_UNITS, PARAMS_UNITS, Figure


@dataclass(frozen=True)
class Computed:
    """What the project computes for a module, in its own units.

    Args:
        params: parameters.
        macs: multiply-accumulates of one forward pass.
        peak_forward: predicted peak memory of a forward pass in evaluation, in bytes.
        peak_training: predicted peak memory of a forward and backward pass in training, in bytes.
    """

    params: int
    macs: int
    peak_forward: int
    peak_training: int


@dataclass(frozen=True)
class Outcome:
    """A published row and what came out for it.

    Args:
        figure: the row.
        computed: what the project computes, counted as the row counts: less what it leaves out; none where nothing was
            built.
    """

    figure: Figure
    computed: Computed | None

    @property
    def params_m(self) -> float | None:
        """Our parameters in the row's millions; in 10^6 where it prints none."""
        return self.computed.params / PARAMS_UNITS.get(self.figure.params_unit, 10**6) if self.computed else None

    @property
    def flops_g(self) -> float | None:
        """Our FLOPs, in billions of what the row calls by that name."""
        return self.computed.macs * FLOPS_UNITS[self.figure.flops_unit] / 1e9 if self.computed else None

    @property
    def params_deviation(self) -> float | None:
        """Ours over the printed parameters, less one."""
        return _deviation(self.params_m, self.figure.params_m)

    @property
    def flops_deviation(self) -> float | None:
        """Ours over the printed FLOPs, less one."""
        return _deviation(self.flops_g, self.figure.flops_g)

    @property
    def largest_deviation(self) -> float | None:
        """The larger of both, without its sign."""
        found = [abs(value) for value in (self.params_deviation, self.flops_deviation) if value is not None]
        return max(found, default=None)


def _deviation(ours: float | None, printed: Decimal | None) -> float | None:
    return None if ours is None or printed is None else ours / float(printed) - 1
