"""The figure of several seeds: every operator and seed, intervals, and what is filled."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from record_factory import ENVIRONMENTS, OPERATORS, accuracy_record

from attnbench.report.frames import accuracy_frames
from attnbench.report.plots import Plot
from attnbench.report.seeds_plot import seeds

SCORES = {"conv3x3": (0.50, 0.52, 0.51), "ema": (0.60, 0.6201, 0.6099), "dual": (0.40, 0.53, 0.55)}


def drawn(records) -> Plot | str:
    return seeds(accuracy_frames(records, ENVIRONMENTS)[0])


def markers(axes: Axes) -> list[tuple[float, bool]]:
    """Value of each mean, from below, and whether it is filled."""
    return [
        (float(line.get_xdata()[0]), line.get_markerfacecolor() != "white")
        for line in axes.lines
        if line.get_marker() not in ("", "None", None)
    ]


@pytest.fixture(scope="module")
def plot() -> Plot:
    records = [
        accuracy_record(operator, seed, miou=score)
        for operator, scores in SCORES.items()
        for seed, score in enumerate(scores)
    ]
    found = drawn(records)
    assert isinstance(found, Plot)
    return found


def test_operators_stand_in_the_order_of_their_score_with_every_seed(plot):
    left, _ = plot.figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == [
        OPERATORS[name][0] for name in ("dual", "conv3x3", "ema")
    ]
    dots = np.round(np.concatenate([np.asarray(group.get_offsets()) for group in left.collections]) * [100, 1])
    wanted = [(1e4 * score, place) for place, name in enumerate(("dual", "conv3x3", "ema")) for score in SCORES[name]]
    assert np.allclose(dots, wanted)
    assert [round(mean, 2) for mean, _ in markers(left)] == [49.33, 51.0, 61.0]


def test_gains_are_paired_by_seed_and_filled_where_they_are_real(plot):
    _, right = plot.figure.axes
    (dual, dual_filled), (ema, ema_filled) = markers(right)
    assert (round(dual, 2), round(ema, 2)) == (-1.67, 10.0)
    assert ema_filled and not dual_filled
    assert right.get_xlabel() == "Gain over conv3x3 (points)"
    assert "local ceiling" in plot.caption


def test_without_the_control_scores_alone_are_drawn():
    found = drawn([accuracy_record(name, seed) for name in ("ema", "dual") for seed in (0, 1)])
    assert isinstance(found, Plot)
    assert len(found.figure.axes) == 1


@pytest.mark.parametrize("trials", [[("ema", 0), ("ema", 1)], [("ema", 0), ("dual", 0)]])
def test_one_operator_or_one_seed_says_why(trials):
    assert "takes two operators, and two seeds" in str(drawn([accuracy_record(*trial) for trial in trials]))


def test_what_failed_is_left_out(plot):
    records = [accuracy_record(name, seed) for name in ("ema", "conv3x3") for seed in (0, 1)]
    found = drawn([*records, accuracy_record("dual", 0, status="timeout", reason="slow")])
    assert isinstance(found, Plot)
    assert len(found.figure.axes[0].get_yticklabels()) == 2
