"""Statistics of repeated timings without a distribution: medians, and intervals from order statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """What repeated measurements say.

    Args:
        median: their median.
        low: lower end of the 95 % confidence interval of the median; none with fewer than six measurements.
        high: its upper end.
        iqr: distance of the quartiles.
        count: how many they are.
    """

    median: float
    low: float | None
    high: float | None
    iqr: float
    count: int

    @property
    def width(self) -> float:
        """Width of the interval relative to the median; infinite where there is no interval."""
        if self.low is None or self.high is None:
            return math.inf
        return (self.high - self.low) / self.median if self.median else math.inf


def interval_ranks(count: int, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """Ranks, from 1, of the order statistics that enclose the median with at least `confidence`.

    For any continuous distribution the number of values below the median is binomial with `p = 1/2`, so that
    `P(x_(k) <= median <= x_(n+1-k)) = 1 - 2 P(Bin(n, 1/2) < k)`; the largest such `k` is taken.

    Args:
        count: number `n` of values.
        confidence: least probability that the interval holds the median.

    Returns:
        `(k, n + 1 - k)`, or none where even the extremes enclose it with less.

    Example:
        >>> interval_ranks(5), interval_ranks(6), interval_ranks(20)
        (None, (1, 6), (6, 15))
    """
    rank, tail = 0, 0
    while rank < (count + 1) // 2:
        tail += math.comb(count, rank)
        if 1 - 2 * tail / 2**count < confidence:
            break
        rank += 1
    return (rank, count + 1 - rank) if rank else None


def summarise(values: Sequence[float]) -> Summary:
    """Median, its interval, and the distance of the quartiles.

    Raises:
        ValueError: if there is no value.

    Example:
        >>> summarise([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        Summary(median=3.5, low=1.0, high=6.0, iqr=2.5, count=6)
    """
    if not len(values):
        raise ValueError("summarise: expected at least one value, got none")
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    first, median, third = (float(value) for value in np.quantile(ordered, (0.25, 0.5, 0.75)))
    ranks = interval_ranks(len(ordered))
    low, high = (float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1])) if ranks else (None, None)
    return Summary(median=median, low=low, high=high, iqr=third - first, count=len(ordered))


def summarise_ratio(values: Sequence[float], control: Sequence[float]) -> Summary:
    """Summary of the ratios of `values` to the control's values of the same rounds.

    A machine that slows down for a while slows both, and their ratio stays.

    Raises:
        ValueError: if the two are not equally many.

    Example:
        >>> summarise_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).median
        2.0
    """
    if len(values) != len(control):
        raise ValueError(f"summarise_ratio: expected {len(values)} control values, one per value, got {len(control)}")
    return summarise([value / reference for value, reference in zip(values, control, strict=True)])
