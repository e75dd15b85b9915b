"""What several seeds say: intervals of mIoU, and which gains over the 3x3 convolution are more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from attnbench.statistics import CONFIDENCE, mean_interval

LEAST_SEEDS = 3
"""Runs from which an interval is given; of two, neither a bootstrap nor a test knows anything."""

_RESAMPLES = 9999


def add_intervals(rows: Sequence[dict[str, Any]]) -> None:
    """Adds to each accuracy row the intervals of its mIoU and of its gain, and whether that gain is real.

    The interval of mIoU is the percentile bootstrap's over the seeds. The gain is paired by seed; its interval is
    Student's, and it is real where the paired t test rejects no difference after Holm's correction over the rows.

    Args:
        rows: accuracy rows of one table, with `seed_miou` and `seed_gain`.
    """
    for row in rows:
        row["miou_low"], row["miou_high"] = _bootstrap(list(row["seed_miou"].values()))
        gains: list[float] = list(row["seed_gain"].values())
        row["gain_low"] = row["gain_high"] = row["gain_p"] = None
        if len(gains) >= LEAST_SEEDS:
            _, row["gain_low"], row["gain_high"] = mean_interval(gains)
            row["gain_p"] = _p_of_no_gain(gains)
    accepted = holm([row["gain_p"] for row in rows], 1 - CONFIDENCE)
    for row, real in zip(rows, accepted, strict=True):
        row["gain_real"] = real


def holm(p_values: Sequence[float | None], level: float) -> list[bool | None]:
    """Which hypotheses Holm's procedure rejects: with what probability one or more true ones are among them is `level`.

    Equation: the `i`-th smallest of `m` p-values (from 0) is rejected while `p_(i) <= level / (m - i)`.

    Args:
        p_values: one for each hypothesis; none where it was not tested.
        level: family-wise error rate.

    Source:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics, 1979.

    Example:
        >>> holm([0.01, 0.04, None, 0.03], 0.05)
        [True, False, None, False]
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    rejected: list[bool | None] = [None if p is None else False for p in p_values]
    for place, (p, index) in enumerate(tested):
        if p > level / (len(tested) - place):
            break
        rejected[index] = True
    return rejected


def _p_of_no_gain(gains: Sequence[float]) -> float:
    # imported here, because it takes a second that reports without several seeds need not wait
    from scipy.stats import ttest_1samp

    if len(set(gains)) == 1:
        return 0.0 if gains[0] else 1.0
    p = float(ttest_1samp(gains, 0.0).pvalue)
    return 1.0 if math.isnan(p) else p


def _bootstrap(values: Sequence[float]) -> tuple[float | None, float | None]:
    if len(values) < LEAST_SEEDS:
        return None, None
    draws = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    means = np.asarray(values)[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
