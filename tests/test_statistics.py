"""Medians, order-statistic intervals and paired ratios, against exact binomial sums."""

import dataclasses
import itertools
import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.statistics import interval_ranks, summarise, summarise_all, summarise_ratio, summarise_series


def coverage(count: int, low: int, high: int) -> float:
    return sum(math.comb(count, k) for k in range(low, high)) / 2**count


@pytest.mark.parametrize("count", [6, 7, 8, 9, 10, 15, 20, 25, 50, 100, 200])
def test_ranks_cover_the_median_and_no_narrower_pair_does(count):
    low, high = interval_ranks(count)
    assert low + high == count + 1
    assert coverage(count, low, high) >= 0.95
    assert coverage(count, low + 1, high - 1) < 0.95


@pytest.mark.parametrize("count", range(1, 6))
def test_few_values_have_no_interval(count):
    assert interval_ranks(count) is None
    assert summarise([1.0] * count).low is None
    assert summarise([1.0] * count).width == math.inf


@pytest.mark.parametrize(("count", "ranks"), [(9, (2, 8)), (10, (2, 9)), (25, (8, 18)), (100, (40, 61))])
def test_ranks_of_the_textbook(count, ranks):
    assert interval_ranks(count) == ranks


def test_summary_does_not_depend_on_order():
    values = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 7.0, 8.0, 6.0]
    summary = summarise(values)
    assert summary == summarise(sorted(values))
    assert (summary.median, summary.low, summary.high, summary.iqr, summary.count) == (5.0, 2.0, 8.0, 4.0, 9)
    assert summary.width == pytest.approx(6 / 5)


def test_a_series_is_summarised_by_the_medians_of_consecutive_groups():
    calm = [1.0, 1.1, 1.2] * 12
    assert summarise_series(calm) == dataclasses.replace(summarise(calm), low=1.1, high=1.1)
    moody = [value + mood for mood in (0.0, 0.5, 0.1, 0.4) for value in [1.0, 1.1, 1.2] * 3]
    summary = summarise_series(moody)
    assert (summary.median, summary.count) == (summarise(moody).median, 36)
    assert summary.width > summarise(sorted(moody)).width
    assert (summary.low, summary.high) == pytest.approx((1.1, 1.6))


@pytest.mark.parametrize("count", [1, 5, 6, 9, 12])
def test_a_short_series_is_summarised_as_it_is(count):
    values = [float(value * 7 % 13) for value in range(count)]
    assert summarise_series(values) == summarise(values)


@given(st.lists(st.floats(0.1, 10), min_size=13, max_size=60))
def test_the_interval_of_a_series_encloses_its_median(values):
    summary = summarise_series(values)
    assert min(values) <= summary.low <= summary.median <= summary.high <= max(values)


def test_intervals_of_a_moody_machine_hold_the_median_nineteen_times_in_twenty():
    draw = np.random.default_rng(0)
    held = {summarise: 0, summarise_series: 0}
    for _ in range(400):
        moods = np.repeat(draw.normal(size=12), 5)
        values = (moods + 0.3 * draw.normal(size=60)).tolist()
        for summarised in held:
            summary = summarised(values)
            held[summarised] += summary.low <= 0 <= summary.high
    assert held[summarise_series] / 400 > 0.93
    assert held[summarise] / 400 < 0.75


def test_ratio_is_taken_round_by_round():
    drift = [1.0, 2.0, 5.0, 3.0, 1.5, 4.0]
    summary = summarise_ratio([3 * value for value in drift], drift)
    assert (summary.median, summary.low, summary.high, summary.width) == (3.0, 3.0, 3.0, 0.0)


def test_what_cannot_be_summarised():
    with pytest.raises(ValueError, match="expected at least one value"):
        summarise([])
    with pytest.raises(ValueError, match="expected 2 control values, one per value, got 1"):
        summarise_ratio([1.0, 2.0], [1.0])


def test_all_at_once_are_what_the_slices_of_each_say():
    draw = random.Random(0)
    series = [[draw.lognormvariate(0, 0.1) for _ in range(count)] for count in [1, 5, 12, 13, 20, 31, 48] * 20]
    for values, found in zip(series, summarise_all(series), strict=True):
        assert found == summarise_series(values)
        if len(values) <= 12:
            assert found == summarise(values)
            continue
        edges = [len(values) * index // 12 for index in range(13)]
        third, *_, tenth = sorted(statistics.median(values[a:b]) for a, b in itertools.pairwise(edges))[2:10]
        middle = statistics.median(values)
        assert (found.median, found.iqr) == pytest.approx((middle, summarise(values).iqr), rel=1e-12)
        assert (found.low, found.high) == pytest.approx((min(third, middle), max(tenth, middle)), rel=1e-12)
    assert summarise_all([]) == []
