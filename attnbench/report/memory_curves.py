"""Live bytes over one pass, operation by operation: a figure with a panel for each operator, and the figures behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnbench.report.plots import Plot, style
from attnbench.report.rows import MIB
from attnbench.report.wording import significant

_ACROSS = 2
_FONT = 7.0
_LONG = 30
"""Letters from which the name of an operation gets a line of its own."""


@dataclass(frozen=True)
class Curve:
    """Live bytes of one operator.

    Args:
        name: its heading.
        points: operation, live bytes when it had ended, and whether it belongs to the backward pass.
        saved_bytes: what is saved for the backward pass; none without one.
    """

    name: str
    points: Sequence[tuple[str, int, bool]]
    saved_bytes: int | None


def curve_sheet(curves: Sequence[Curve]) -> pd.DataFrame:
    """A row for each operation of each operator."""
    return pd.DataFrame(
        [
            {"operator": curve.name, "step": step, "operation": operation, "live_bytes": live, "backward": backward}
            for curve in curves
            for step, (operation, live, backward) in enumerate(curve.points, start=1)
        ],
        columns=["operator", "step", "operation", "live_bytes", "backward"],
    )


def memory_curves(curves: Sequence[Curve], name: str, setting: str) -> Plot:
    """A panel for each operator: live bytes after each operation, with the peak and the turn to the backward pass."""
    across = min(_ACROSS, len(curves))
    down = -(-len(curves) // across)
    with style():
        figure = Figure(figsize=(3.8 * across, 2.4 * down), layout="constrained")
        panels = list(figure.subplots(down, across, squeeze=False).flat)
        for axes, curve in zip(panels, curves, strict=False):
            _draw(axes, curve)
        for axes in panels[len(curves) :]:
            axes.remove()
        for axes in panels[max(len(curves) - across, 0) : len(curves)]:
            axes.set_xlabel("Operation")
        for axes in panels[: len(curves) : across]:
            axes.set_ylabel("Live memory (MiB)")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    caption = f"Live memory on top of weights and inputs after each operation. {setting}. The dashed line is where the "
    caption += "backward pass begins, the dot the peak; each panel has its own axes."
    return Plot(name, caption, figure)


def _draw(axes: Axes, curve: Curve) -> None:
    steps = range(1, len(curve.points) + 1)
    live = [point[1] / MIB for point in curve.points]
    axes.fill_between(steps, live, step="mid", color="tab:blue", alpha=0.2, linewidth=0)
    axes.step(steps, live, where="mid", color="tab:blue", linewidth=1.0)
    axes.set_ylim(bottom=0)
    heading = curve.name
    if curve.saved_bytes is not None:
        heading += f": {significant(curve.saved_bytes / MIB)} MiB saved for backward"
        turn = sum(not backward for _, _, backward in curve.points) + 0.5
        axes.axvline(turn, color="0.3", linestyle="--", linewidth=0.9)
    if live:
        top = max(range(len(live)), key=live.__getitem__)
        axes.plot(steps[top], live[top], marker="o", markersize=3.5, color="tab:red")
        operation = curve.points[top][0].partition("::")[2]
        heading += f"\npeak {significant(live[top])} MiB in" + ("\n" if len(operation) > _LONG else " ") + operation
    axes.set_title(heading, loc="left", fontsize=_FONT)
