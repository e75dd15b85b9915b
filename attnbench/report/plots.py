"""Figures: what all of them share, and accuracy against cost; a figure that cannot be drawn says why."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from attnbench.report.frames import Frame
from attnbench.report.labels import place_labels
from attnbench.report.rows import CONTROL
from attnbench.report.wording import cost_title, label, slug

DPI = 200
_FONT = 8.0
KINDS = {"attention": ("Attention", 0, "o"), "context": ("Context", 1, "s"), "control": ("Control", 7, "D")}
CROWD = 24
"""Rows from which points carry numbers in place of names."""
KEY_COLUMNS = 3


@dataclass(frozen=True, eq=False)
class Plot:
    """A figure with its name and caption.

    Args:
        name: name of its files, without suffix.
        caption: what it shows, with units and settings.
        figure: the figure.

    """

    name: str
    caption: str
    figure: Figure

    def png(self) -> bytes:
        """The picture with 200 dots per inch; equal figures give equal bytes."""
        return self._draw("png", {"Software": None})

    def pdf(self) -> bytes:
        """The picture for papers, with text as text; equal figures give equal bytes."""
        return self._draw("pdf", {"CreationDate": None, "Producer": None, "Creator": None})

    def _draw(self, kind: str, metadata: Mapping[str, None]) -> bytes:
        buffer = io.BytesIO()
        with style():
            self.figure.savefig(buffer, format=kind, dpi=DPI, metadata=dict(metadata))
        return buffer.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures: legible in print, in grey, and for colour-blind readers."""
    rules: dict[str, Any] = {
        **sns.axes_style("ticks"),
        **sns.plotting_context("paper"),
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "axes.titlesize": _FONT + 1,
        "axes.labelsize": _FONT + 1,
        "xtick.labelsize": _FONT,
        "ytick.labelsize": _FONT,
        "legend.fontsize": _FONT,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "0.92",
        "grid.linewidth": 0.6,
        "pdf.fonttype": 42,
        "svg.hashsalt": "attnbench",
    }
    with mpl.rc_context(rules):  # type: ignore[arg-type]
        yield


def trade_off(frame: Frame) -> Plot | str:
    """Accuracy against forward latency and against peak memory; or why it cannot be drawn."""
    where = cost_title(frame.cost) if frame.cost else "accuracy alone"
    if not frame.accuracy:
        return f"mIoU against cost ({where}): no accuracy was measured on this machine."
    needed = ["miou", "ratio_forward", "peak_mib_forward", "params"]
    if not frame.cost or not set(needed) <= set(frame.rows.columns):
        return f"mIoU against cost ({where}): no cost was measured."
    rows = frame.rows.dropna(subset=needed)
    if int((rows["macs"].astype(float) > 0).sum()) < 2:
        return f"mIoU against cost ({where}): fewer than two operators have both."
    crowded = len(rows) > CROWD
    if crowded:
        rows = rows[rows["implementation"] == "reference"]
    names = labels_of(rows[rows["macs"].astype(float) > 0])
    key_lines = -(-len(names) // KEY_COLUMNS) if crowded else 0
    with style():
        figure = Figure(figsize=(7.2, 3.9 + bool(key_lines) + 0.135 * key_lines), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        left.set_xlabel(f"Forward latency / latency of {CONTROL}")
        right.set_xlabel("Peak memory, forward (MiB)")
        left.set_ylabel("mIoU (%)")
        handles = kind_handles(set(rows["kind"]), 6)
        if (rows["implementation"] != "reference").any():
            hollow = Line2D([], [], linestyle="", marker="o", color="0.3", markerfacecolor="white", markersize=6)
            hollow.set_label("Fused implementation")
            handles.append(hollow)
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
        free = rows["macs"].astype(float) == 0
        points = rows[~free]
        panels = ((left, "ratio_forward"), (right, "peak_mib_forward"))
        for axes, column in panels:
            _scatter(axes, points, column, rows["miou"])
            _draw_front(axes, points, column)
        if crowded:
            number_key(figure, names)
        marks = [str(number) for number in range(1, len(names) + 1)] if crowded else names
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes, column in panels:
            for row in rows[free].to_dict("records"):
                _baseline(axes, row)
            places = list(zip(points[column].astype(float), 100 * points["miou"].astype(float), strict=True))
            radii = [area**0.5 / 2 for area in _areas(points)]
            place_labels(axes, places, marks, radii, list(_bars(points)), fontsize=_FONT - 1)
    caption = f"mIoU against cost. {cost_title(frame.cost)}; mIoU: {frame.accuracy_title}. "
    caption += "The area of a marker grows with the operator's parameters; bars are the standard deviation over "
    caption += "seeds; a dotted line is an operator that multiplies nothing; the thin line joins the operators that no "
    caption += "other beats in both. "
    caption += "Fused implementations, which compute the same, are left out. " if crowded else ""
    setting = frame.cost
    size = f"{setting['height']}x{setting['width']}"
    name = slug("trade-off", setting["level"], size, setting["channels"], setting["device"], frame.accuracy["dataset"])
    return Plot(name, caption, figure)


def kind_handles(kinds: set[str], size: float) -> list[Line2D]:
    """Entries of a legend for the kinds of operators."""
    return [
        Line2D([], [], linestyle="", marker=marker, color=colour(kind), markersize=size, label=name)
        for kind, (name, _, marker) in KINDS.items()
        if kind in kinds
    ]


def number_key(figure: Figure, names: Sequence[str]) -> None:
    """Writes below the axes which operator each number stands for, from 1."""
    handles = [Line2D([], [], linestyle="", label=f"{number}  {name}") for number, name in enumerate(names, start=1)]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=KEY_COLUMNS,
        frameon=False,
        fontsize=_FONT - 1,
        handlelength=0.0,
        handletextpad=0.0,
        labelspacing=0.2,
    )


def _draw_front(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    """Joins the operators that no other beats in both cost and accuracy."""
    front: list[tuple[float, float]] = []
    costs = zip(rows[column].astype(float), 100 * rows["miou"].astype(float), strict=True)
    for cost, score in sorted(costs, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    axes.plot(*zip(*front, strict=True), color="0.6", linewidth=0.8, zorder=2)


def _baseline(axes: Axes, row: Mapping[Any, Any]) -> None:
    """Draws an operator without cost, which has no place on a logarithmic axis, as a line across."""
    score = 100 * float(row["miou"])
    axes.axhline(score, color=colour(row["kind"]), linewidth=1.0, linestyle=":", zorder=1)
    text = axes.annotate(
        label(row), (0, score), xycoords=axes.get_yaxis_transform(), xytext=(3, 2), textcoords="offset points"
    )
    text.set(fontsize=_FONT - 1, va="bottom")


def _scatter(axes: Axes, rows: pd.DataFrame, column: str, scores: pd.Series[Any]) -> None:
    values, score = rows[column].astype(float), 100 * rows["miou"].astype(float)
    axes.set_xscale("log")
    axes.set_xlim(values.min() / 2.2, values.max() * 2.2)
    low, high = 100 * float(scores.min()), 100 * float(scores.max())
    margin = max(0.12 * (high - low), 0.5)
    axes.set_ylim(low - margin, high + margin)
    axes.errorbar(values, score, yerr=_bars(rows), fmt="none", ecolor="0.7", elinewidth=0.8, zorder=1)
    for (kind, implementation), group in rows.assign(area=_areas(rows)).groupby(["kind", "implementation"]):
        shade = colour(str(kind))
        axes.scatter(
            group[column].astype(float),
            100 * group["miou"].astype(float),
            s=group["area"],
            marker=KINDS[str(kind)][2],
            facecolors=shade if implementation == "reference" else "white",
            edgecolors="white" if implementation == "reference" else shade,
            linewidths=0.5 if implementation == "reference" else 1.2,
            alpha=0.9,
            zorder=3,
        )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def labels_of(rows: pd.DataFrame) -> list[str]:
    """The label of each row."""
    return [label({str(key): value for key, value in row.items()}) for row in rows.to_dict("records")]


def _bars(rows: pd.DataFrame) -> pd.Series[Any]:
    return 100 * rows["miou_std"].astype(float).fillna(0.0)


def _areas(rows: pd.DataFrame) -> list[float]:
    params = rows["params"].astype(float)
    least, most = (24.0, 150.0) if len(rows) <= CROWD else (10.0, 60.0)
    return [least + most * value for value in params / max(float(params.max()), 1.0)]


def colour(kind: str) -> tuple[float, float, float]:
    """The colour of a kind of operator."""
    found: tuple[float, float, float] = sns.color_palette("colorblind")[KINDS[kind][1]]
    return found
