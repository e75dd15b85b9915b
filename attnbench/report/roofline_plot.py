"""The roofline as a figure: the machine's roof, and every operator as a numbered point."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from attnbench.report.frames import Frame
from attnbench.report.labels import place_labels
from attnbench.report.plots import KEY_COLUMNS, KINDS, Plot, colour, labels_of, number_key, style
from attnbench.report.roofline import Roof, roof_of
from attnbench.report.rows import MODES
from attnbench.report.wording import cost_title, slug

_FONT = 7.0
_RADIUS = 2.3


def rooflines(frame: Frame) -> list[Plot | str]:
    """A figure for each mode of a cost setting; or why it cannot be drawn."""
    title = cost_title(frame.cost)
    roof = roof_of(frame.environment, frame.cost["dtype"])
    if roof is None:
        return [f"Roofline ({title}): the machine's rates were not measured."]
    return [_roofline(frame, mode, roof, title) for mode in MODES]


def _roofline(frame: Frame, mode: str, roof: Roof, title: str) -> Plot | str:
    columns = [f"intensity_{mode}", f"gflops_{mode}"]
    if not set(columns) <= set(frame.rows.columns):
        return f"Roofline ({title}, {mode}): not measured."
    rows = frame.rows.dropna(subset=columns)
    rows = rows[(rows[columns[0]].astype(float) > 0) & (rows[columns[1]].astype(float) > 0)]
    if rows.empty:
        return f"Roofline ({title}, {mode}): no operator has the figures."
    intensity, rate = (rows[column].astype(float) for column in columns)
    lines = math.ceil(len(rows) / KEY_COLUMNS)
    with style():
        figure = Figure(figsize=(7.2, 4.9 + 0.135 * lines), layout="constrained")
        axes = figure.subplots()
        _draw_roof(axes, intensity, rate, roof)
        for kind, implementation, x, y in zip(rows["kind"], rows["implementation"], intensity, rate, strict=True):
            filled = implementation == "reference"
            axes.plot(
                [x],
                [y],
                linestyle="",
                marker=KINDS[str(kind)][2],
                markersize=2 * _RADIUS,
                markerfacecolor=colour(str(kind)) if filled else "white",
                markeredgecolor="white" if filled else colour(str(kind)),
                markeredgewidth=0.4 if filled else 1.0,
                zorder=3,
            )
        _key(figure, rows)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        numbers = [str(position) for position in range(1, len(rows) + 1)]
        points = list(zip(intensity, rate, strict=True))
        place_labels(axes, points, numbers, [_RADIUS] * len(rows), [0.0] * len(rows), fontsize=_FONT)
    caption = (
        f"Roofline, {mode}. {title}. Lines: the copy bandwidth ({roof.bytes_per_s / 1e9:.3g} GB/s) and the matrix "
    )
    caption += f"rate ({roof.operations_per_s / 1e9:.3g} GFLOP/s) of the machine. Operations: 2 × MACs + elementwise; "
    caption += (
        "bytes: those that must move. Both axes are logarithmic; a point above the roof works from caches, or with "
    )
    caption += "fewer or less precise products than are counted. Hollow: fused implementations."
    setting = frame.cost
    size = f"{setting['height']}x{setting['width']}"
    name = slug("roofline", setting["level"], size, setting["channels"], setting["dtype"], setting["device"], mode)
    return Plot(name, caption, figure)


def _draw_roof(axes: Axes, intensity: pd.Series[float], rate: pd.Series[float], roof: Roof) -> None:
    low = min(float(intensity.min()), roof.ridge) / 2
    high = max(float(intensity.max()), roof.ridge) * 2
    across = np.array([low, roof.ridge, high])
    axes.plot(across, [roof.at(value) / 1e9 for value in across], color="0.25", linewidth=1.2, zorder=1)
    axes.axvline(roof.ridge, color="0.75", linewidth=0.8, linestyle=":", zorder=0)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(float(rate.min()) / 2, max(float(rate.max()), roof.operations_per_s / 1e9) * 1.8),
        xlabel="Operations per byte that must move",
        ylabel="Operations per second (G)",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _key(figure: Figure, rows: pd.DataFrame) -> None:
    """The kinds above the axes, and below them the operator of each number."""
    kinds = [
        Line2D([], [], linestyle="", marker=marker, color=colour(kind), markersize=5, label=name)
        for kind, (name, _, marker) in KINDS.items()
        if kind in set(rows["kind"])
    ]
    figure.legend(handles=kinds, loc="outside upper center", ncols=len(kinds), fontsize=_FONT, frameon=False)
    number_key(figure, labels_of(rows))
