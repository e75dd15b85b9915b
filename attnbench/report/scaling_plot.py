"""The figure of cost against resolution; where it cannot be drawn, why."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from attnbench.report.frames import Frame
from attnbench.report.plots import Plot, labels_of, style
from attnbench.report.rows import MODES
from attnbench.report.wording import cost_title, slug

_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")
_DASHES = ("-", "--", ":", "-.")


def scaling(frames: Sequence[Frame]) -> list[Plot | str]:
    """Cost against the number of positions for each series of sizes; or why it cannot be drawn."""
    series: dict[str, dict[tuple[int, int], Frame]] = {}
    for frame in frames:
        if frame.cost:
            rest = {key: value for key, value in frame.cost.items() if key not in ("height", "width")}
            size = (frame.cost["height"], frame.cost["width"])
            series.setdefault(json.dumps(rest, sort_keys=True), {}).setdefault(size, frame)
    drawn: list[Plot | str] = []
    for sizes in series.values():
        # a line over maps of several shapes would jump where two of them have as many positions
        square = {size: frame for size, frame in sizes.items() if size[0] == size[1]}
        members = sorted(
            (square if len(square) > 1 else sizes).values(),
            key=lambda frame: int(frame.cost["height"] * frame.cost["width"]),
        )
        title = cost_title(members[0].cost).replace(f"{members[0].cost['height']}×{members[0].cost['width']} map, ", "")
        if len(members) < 2:
            drawn.append(f"Cost against resolution ({title}): one size was measured; it takes two.")
            continue
        drawn += [_scaling_plot(members, mode, title) for mode in MODES]
    return drawn


def _scaling_plot(members: Sequence[Frame], mode: str, title: str) -> Plot | str:
    long = pd.concat([frame.rows.assign(n=frame.cost["height"] * frame.cost["width"]) for frame in members])
    long = long[(long[f"status_{mode}"] == "ok") & (long["macs"].astype(float) > 0)]
    if long["n"].nunique() < 2:
        return f"Cost against resolution ({title}, {mode}): fewer than two sizes succeeded."
    panels = [("macs", "MACs (G)", 1e9)] if mode == "forward" else []
    panels += [
        (f"peak_mib_{mode}", f"Peak memory, {mode} (MiB)", 1.0),
        (f"latency_ms_{mode}", f"Latency, {mode} (ms)", 1.0),
    ]
    panels = [panel for panel in panels if (long[panel[0]].astype(float) > 0).any()]
    long["name"] = labels_of(long)
    labels = list(long["name"].unique())
    with style():
        legend_rows = -(-len(labels) // 4)
        figure = Figure(figsize=(7.2, 2.9 + 0.2 * legend_rows), layout="constrained")
        columns = figure.subplots(1, len(panels), squeeze=False)[0]
        styles = _line_styles(labels)
        for axes, (column, heading, unit) in zip(columns, panels, strict=True):
            for name in labels:
                points = long[(long["name"] == name) & (long[column].astype(float) > 0)]
                axes.plot(
                    points["n"],
                    points[column].astype(float) / unit,
                    markersize=4,
                    linewidth=1.2,
                    **styles[name],
                )
            axes.set(xscale="log", yscale="log", xlabel="Positions N = H × W", ylabel=heading)
            sizes = sorted(long["n"].unique())
            axes.xaxis.set_major_locator(FixedLocator(sizes if len(sizes) <= 5 else sizes[:: -(-len(sizes) // 5)]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(axis="x", rotation=0 if len(sizes) <= 3 else 45)
        handles = [Line2D([], [], markersize=4, linewidth=1.2, label=name, **styles[name]) for name in labels]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    caption = f"Cost against resolution, {mode}. {title}. Both axes are logarithmic; a line ends where an operator "
    caption += (
        "failed; operators that multiply nothing are left out, and so are maps of other shapes beside square ones."
    )
    first = members[0].cost
    predicted = ("predicted",) if first.get("predicted") else ()
    return Plot(slug("scaling", first["level"], first["channels"], first["device"], *predicted, mode), caption, figure)


def _line_styles(labels: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    palette = sns.color_palette("colorblind", 10)
    cycle = itertools.cycle(range(len(palette)))
    return {
        name: {
            "color": palette[colour],
            "marker": _MARKERS[colour],
            "linestyle": _DASHES[index // len(palette) % len(_DASHES)],
        }
        for index, (name, colour) in enumerate(zip(labels, cycle, strict=False))
    }
