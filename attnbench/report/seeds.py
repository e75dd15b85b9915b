"""What several seeds say: intervals of mIoU, and which gains over the 3x3 convolution are more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from attnbench.statistics import CONFIDENCE, paired

LEAST_SEEDS = 3
"""Runs from which an interval is given; of two, neither a bootstrap nor a test knows anything."""

_RESAMPLES = 9999


def add_intervals(rows: Sequence[dict[str, Any]], control: str) -> None:
    """Adds to each accuracy row the intervals of its mIoU and of its gain, and whether that gain is real.

    The interval of mIoU is the percentile bootstrap's over the seeds. The gain is paired by seed; its interval is
    Student's, and it is real where the paired t test rejects no difference after Holm's correction over the rows.

    Args:
        rows: accuracy rows of one table, with `seed_miou`.
        control: operator that the gain is over.
    """
    reference: dict[int, float] = next((row["seed_miou"] for row in rows if row["operator"] == control), {})
    for row in rows:
        own: dict[int, float] = row["seed_miou"]
        row["miou_low"], row["miou_high"] = _bootstrap(list(own.values()))
        seeds = [seed for seed in own if seed in reference] if row["operator"] != control else []
        first, second = [own[seed] for seed in seeds], [reference[seed] for seed in seeds]
        row["gain_low"] = row["gain_high"] = row["gain_p"] = None
        if len(seeds) >= LEAST_SEEDS:
            _, row["gain_low"], row["gain_high"] = paired(first, second)
            row["gain_p"] = _paired_p(first, second)
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


def _paired_p(first: Sequence[float], second: Sequence[float]) -> float:
    # imported here, because it takes a second that reports without several seeds need not wait
    from scipy.stats import ttest_rel

    if len({one - other for one, other in zip(first, second, strict=True)}) == 1:
        return 1.0 if first[0] == second[0] else 0.0
    p = float(ttest_rel(first, second).pvalue)
    return 1.0 if math.isnan(p) else p


def _bootstrap(values: Sequence[float]) -> tuple[float | None, float | None]:
    if len(values) < LEAST_SEEDS:
        return None, None
    draws = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    means = np.asarray(values)[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
