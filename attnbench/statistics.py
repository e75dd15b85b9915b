"""Statistics of repeated timings without a distribution: medians, and intervals from order statistics."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

CONFIDENCE = 0.95
SLICES = 12
"""Groups of consecutive samples that an interval is taken from, at most; of twelve it leaves out two at either end."""

_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; the last is a safe bound for more."""


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


@functools.cache
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
    ordered = sorted(map(float, values))
    first, third = _quantile(ordered, 0.25), _quantile(ordered, 0.75)
    ranks = interval_ranks(len(ordered))
    low, high = (ordered[ranks[0] - 1], ordered[ranks[1] - 1]) if ranks else (None, None)
    return Summary(median=_middle(ordered), low=low, high=high, iqr=third - first, count=len(ordered))


def summarise_series(values: Sequence[float]) -> Summary:
    """Summary of values in the order of time, whose interval knows that neighbours are alike.

    A shared machine is in one mood for seconds, so that forty samples of ten seconds are no forty independent ones,
    and an interval that takes them for such is far too narrow. The values are cut into at most `SLICES` consecutive
    groups of equal size, give or take one, and the interval is that of the groups' medians: what varies from one
    group to the next widens it, as it varies the median.

    Raises:
        ValueError: if there is no value.

    Example:
        >>> summary = summarise_series([1.0] * 12 + [2.0] * 12)
        >>> summary.median, summary.low, summary.high
        (1.5, 1.0, 2.0)
    """
    return summarise_all([values])[0]


def summarise_all(series: Sequence[Sequence[float]]) -> list[Summary]:
    """`summarise_series` of each; many of one length take a fraction of the time that they take one after the other.

    Example:
        >>> [summary.median for summary in summarise_all([[1.0] * 12 + [2.0] * 12, [3.0]])]
        [1.5, 3.0]
    """
    by_length: dict[int, list[int]] = {}
    for place, values in enumerate(series):
        by_length.setdefault(len(values), []).append(place)
    found: dict[int, Summary] = {}
    for count, places in by_length.items():
        alike = [series[place] for place in places]
        found |= zip(places, map(summarise, alike) if count <= SLICES else _summarise_equal(alike), strict=True)
    return [found[place] for place in range(len(series))]


def _summarise_equal(series: Sequence[Sequence[float]]) -> list[Summary]:
    """Summary of each of several series of one length, more than `SLICES` values."""
    columns = np.array(series, dtype=float).T
    ordered = np.sort(columns, axis=0)
    whole, iqr = _middle(ordered), _quantile(ordered, 0.75) - _quantile(ordered, 0.25)
    medians = np.sort([_middle(np.sort(columns[start:end], axis=0)) for start, end in _slices(len(columns))], axis=0)
    ranks = interval_ranks(SLICES)
    assert ranks is not None
    low, high = np.minimum(medians[ranks[0] - 1], whole), np.maximum(medians[ranks[1] - 1], whole)
    rows = zip(whole.tolist(), low.tolist(), high.tolist(), iqr.tolist(), strict=True)
    return [Summary(*row, len(columns)) for row in rows]


@functools.cache
def _slices(count: int) -> list[tuple[int, int]]:
    """First and one past the last place of each of `SLICES` groups of `count` values."""
    return list(itertools.pairwise(count * index // SLICES for index in range(SLICES + 1)))


def median(values: Sequence[float]) -> float:
    """The median of at least one value.

    Example:
        >>> median([3.0, 1.0, 2.0])
        2.0
    """
    middle: float = _middle(sorted(values))
    return middle


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean of few values, such as differences of pairs, and its 95 % interval by Student's t; none of a single value.

    Example:
        >>> mean_interval([1.0, 1.0, 1.0])
        (1.0, 1.0, 1.0)
    """
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None, None
    half = _STUDENT[min(len(values) - 1, len(_STUDENT)) - 1]
    half *= statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _middle(ordered: Sequence[float] | Array) -> Any:
    """`_quantile` of one half, to the bit, without its arithmetic: reports ask it millions of times."""
    high = ordered[len(ordered) // 2]
    return high if len(ordered) % 2 else high - (high - ordered[len(ordered) // 2 - 1]) * 0.5


def _quantile(ordered: Sequence[float] | Array, share: float) -> Any:
    """As `numpy.quantile` of sorted values, to the bit; for a few dozen of them an array costs more than the work.

    Of an array it is the quantile of each column.
    """
    place = share * (len(ordered) - 1)
    index = int(place)
    low, high = ordered[index], ordered[min(index + 1, len(ordered) - 1)]
    part = place - index
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


def summarise_ratio(values: Sequence[float], control: Sequence[float]) -> Summary:
    """Summary of the ratios of `values`, in the order of time, to the control's values beside them.

    A machine that slows down for a while slows both, and their ratio stays.

    Raises:
        ValueError: if the two are not equally many.

    Example:
        >>> summarise_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).median
        2.0
    """
    if len(values) != len(control):
        raise ValueError(f"summarise_ratio: expected {len(values)} control values, one per value, got {len(control)}")
    return summarise_series([value / reference for value, reference in zip(values, control, strict=True)])
