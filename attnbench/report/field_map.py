"""The map of the field: what each operator reaches, what it costs, and how that cost grows with the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogFormatterMathtext, NullLocator

from attnbench.report.plots import Plot, style

_REACHES = {
    "pixel": ("its own pixel", 7),
    "window": ("a window", 2),
    "axis": ("its row or column", 1),
    "global": ("the whole map", 0),
}
_MARKERS = ("|", "o", "D")
_ROW = 0.155
_FONT = 7.0


@dataclass(frozen=True)
class Place:
    """One operator on the map.

    Args:
        title: name in the figure.
        kind: `"attention"`, `"context"` or `"control"`.
        reach: which input pixels one output pixel depends on.
        growth: exponent of the cost in the number of positions, in the limit.
        macs: multiply-accumulates at each side of a square map.
    """

    title: str
    kind: str
    reach: str
    growth: float
    macs: tuple[int, ...]


def field_map(places: Sequence[Place], sides: Sequence[int], channels: int) -> Plot:
    """Draws every operator as a line from its cost on the smallest map to that on the largest.

    Operators stand in bands of equal growth, cheapest on top, so that a band's lines are of one length: the longer the
    line, the dearer the next resolution. The colour is the reach.

    Args:
        places: the operators; those that multiply nothing are left out.
        sides: sides of the square maps, from small to large.
        channels: channels of the maps.
    """
    shown = sorted((place for place in places if all(place.macs)), key=lambda place: (place.growth, place.macs[1]))
    growths = sorted({place.growth for place in shown})
    gaps = len(growths) - 1
    with style():
        figure = Figure(figsize=(7.2, 1.1 + _ROW * (len(shown) + 1.6 * gaps)), layout="constrained")
        axes = figure.subplots()
        lines = [index + 1.6 * growths.index(place.growth) for index, place in enumerate(shown)]
        for line, place in zip(lines, shown, strict=True):
            _draw(axes, line, place)
        axes.set(xscale="log", ylim=(max(lines) + 1, -1.4), xlabel="Multiply-accumulates of one image")
        axes.set_yticks(lines, [place.title for place in shown], fontsize=_FONT)
        for text, place in zip(axes.get_yticklabels(), shown, strict=True):
            text.set_color("0.5" if place.kind == "control" else "black")
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        for growth in growths:
            top = min(line for line, place in zip(lines, shown, strict=True) if place.growth == growth)
            axes.annotate(
                _band(growth),
                (0, top - 0.75),
                xycoords=axes.get_yaxis_transform(),
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=_FONT + 1,
                fontweight="bold",
                va="center",
            )
        powers = [10.0**exponent for exponent in range(17)]
        axes.xaxis.set_major_locator(FixedLocator(powers))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(LogFormatterMathtext())
        figure.legend(
            handles=_legend({place.reach for place in shown}, sides),
            loc="outside upper center",
            ncols=4,
            frameon=False,
            fontsize=_FONT,
        )
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    maps = ", ".join(f"{side}×{side}" for side in sides)
    caption = (
        f"The map of the field: multiply-accumulates of every operator on maps of {maps} with {channels} channels, in "
        "bands of equal growth with the number of positions N. The colour is what one output pixel can see. Grey "
        "names are controls."
    )
    return Plot("field-map", caption, figure)


def _draw(axes: Axes, line: float, place: Place) -> None:
    colour = sns.color_palette("colorblind")[_REACHES[place.reach][1]]
    costs = place.macs
    axes.plot((costs[0], costs[-1]), (line, line), color=colour, linewidth=2.2, alpha=0.45, solid_capstyle="round")
    for marker, cost in zip(_MARKERS, costs, strict=True):
        axes.plot(cost, line, marker=marker, color=colour, markersize=4.0, linestyle="")


def _band(growth: float) -> str:
    if growth == 0:
        return "does not grow"
    power = {0.5: "√N", 1.0: "N", 1.5: "N√N", 2.0: "N²"}.get(growth, f"N^{growth:g}")
    return f"grows with {power}"


def _legend(reaches: set[str], sides: Sequence[int]) -> list[Line2D]:
    palette = sns.color_palette("colorblind")
    colours = [
        Line2D([], [], color=palette[colour], linewidth=2.2, label=f"sees {words}")
        for reach, (words, colour) in _REACHES.items()
        if reach in reaches
    ]
    markers = [
        Line2D([], [], color="0.3", marker=marker, markersize=4.0, linestyle="", label=f"{side}×{side} map")
        for marker, side in zip(_MARKERS, sides, strict=True)
    ]
    return [*colours, *markers]
