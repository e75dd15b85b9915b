"""Figures: what is drawn, what is refused with a reason, and labels that do not cover each other."""

from __future__ import annotations

import itertools
import struct

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from record_factory import ENVIRONMENTS, OPERATORS, accuracy_record, cost_record, full_run

from attnbench.report.frames import comparison_frames
from attnbench.report.labels import place_labels
from attnbench.report.plots import Plot, trade_off
from attnbench.report.scaling_plot import scaling


def overlaps(boxes: list[Bbox]) -> int:
    shared = [Bbox.intersection(one, other) for one, other in itertools.combinations(boxes, 2)]
    return sum(box is not None and box.width * box.height > 1 for box in shared)


def text_boxes(axes: Axes) -> list[Bbox]:
    """Extents of the letters alone, without the lines that lead to the points."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes: list[Bbox] = []
    for text in axes.texts:
        text.get_window_extent(renderer)
        boxes.append(Text.get_window_extent(text, renderer))
    return boxes


def test_trade_off_labels_every_operator_without_overlap() -> None:
    plot = trade_off(comparison_frames(full_run(sizes=(65,)), ENVIRONMENTS)[0])
    assert isinstance(plot, Plot)
    titles = {title for title, *_ in OPERATORS.values()} | {"Non-local (fused)"}
    for axes in plot.figure.axes:
        assert {text.get_text() for text in axes.texts} == titles
        assert overlaps(text_boxes(axes)) == 0


def test_crowded_points_still_get_labels_apart() -> None:
    axes = Figure(figsize=(4, 4)).add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    points = [(0.5 + 0.01 * index, 0.5 + 0.01 * (index % 3)) for index in range(8)]
    place_labels(axes, points, [f"operator {index}" for index in range(8)], [3.0] * 8, [0.0] * 8, fontsize=7)
    assert len(axes.texts) == 8
    assert overlaps(text_boxes(axes)) == 0


def test_overlap_of_labels_would_be_seen() -> None:
    axes = Figure(figsize=(4, 4)).add_subplot()
    for _ in range(2):
        axes.annotate("operator", (0.5, 0.5))
    assert overlaps(text_boxes(axes)) == 1


def test_axes_carry_units() -> None:
    plot = trade_off(comparison_frames(full_run(sizes=(65,)), ENVIRONMENTS)[0])
    assert isinstance(plot, Plot)
    left, right = plot.figure.axes
    assert left.get_ylabel() == "mIoU (%)"
    assert right.get_xlabel().endswith("(MiB)")


def test_trade_off_without_accuracy_says_why() -> None:
    frame = comparison_frames([cost_record("ema"), cost_record("dual")], ENVIRONMENTS)[0]
    assert "no accuracy" in str(trade_off(frame))


def test_trade_off_of_one_operator_says_why() -> None:
    frame = comparison_frames([cost_record("ema"), accuracy_record("ema")], ENVIRONMENTS)[0]
    assert "fewer than two" in str(trade_off(frame))


def test_scaling_draws_both_modes_on_logarithmic_axes() -> None:
    plots = scaling(comparison_frames(full_run(sizes=(33, 65)), ENVIRONMENTS))
    assert [isinstance(plot, Plot) for plot in plots] == [True, True]
    forward = plots[0]
    assert isinstance(forward, Plot)
    assert [axes.get_ylabel() for axes in forward.figure.axes] == [
        "MACs (G)",
        "Peak memory, forward (MiB)",
        "Latency, forward (ms)",
    ]
    assert {axes.get_xscale() + axes.get_yscale() for axes in forward.figure.axes} == {"loglog"}
    assert len(forward.figure.axes[0].lines) == len(OPERATORS)


def test_lines_can_be_told_apart() -> None:
    names = [f"operator {index}" for index in range(23)]
    records = [cost_record(name, size=size, title=name) for name in names for size in (33, 65)]
    plot = scaling(comparison_frames(records, ENVIRONMENTS))[0]
    assert isinstance(plot, Plot)
    looks = {(str(line.get_color()), line.get_marker(), line.get_linestyle()) for line in plot.figure.axes[0].lines}
    assert len(looks) == len(names)


def test_lines_of_scaling_go_over_square_maps_alone() -> None:
    sizes = [{"size": 33}, {"size": 66}, {"size": 66, "height": 33, "width": 132}]
    plot = scaling(comparison_frames([cost_record("ema", **size) for size in sizes], ENVIRONMENTS))[0]
    assert isinstance(plot, Plot)
    assert all(list(axes.lines[0].get_xdata()) == [33**2, 66**2] for axes in plot.figure.axes)


def test_scaling_of_one_size_says_why() -> None:
    reasons = scaling(comparison_frames(full_run(sizes=(65,)), ENVIRONMENTS))
    assert len(reasons) == 1
    assert "takes two" in str(reasons[0])


def test_scaling_where_one_size_failed_says_why() -> None:
    failed = {"status": "timeout", "reason": "slow"}
    records = [cost_record("ema", size=33), cost_record("ema", size=65, **failed)]
    reasons = scaling(comparison_frames(records, ENVIRONMENTS))
    assert all("fewer than two sizes" in str(reason) for reason in reasons)


@pytest.fixture(scope="module")
def plot() -> Plot:
    drawn = trade_off(comparison_frames(full_run(sizes=(65,)), ENVIRONMENTS)[0])
    assert isinstance(drawn, Plot)
    return drawn


def test_png_has_two_hundred_dots_per_inch(plot: Plot) -> None:
    width, height = struct.unpack(">II", plot.png()[16:24])
    assert (width, height) == tuple(round(200 * side) for side in plot.figure.get_size_inches())


def test_files_of_equal_figures_are_equal(plot: Plot) -> None:
    assert plot.png() == plot.png()
    assert plot.pdf() == plot.pdf()
    assert plot.pdf().startswith(b"%PDF")
