"""The figure of what several seeds say: mIoU of each operator, and its gain over the 3x3 convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnbench.report.frames import Frame
from attnbench.report.plots import KINDS, Plot, colour, kind_handles, style
from attnbench.report.rows import CONTROL
from attnbench.report.wording import label, present, slug

Row = dict[str, Any]

_ROW_INCHES = 0.155
_MARKER = 4.5
_BELOW = 0.27
"""How far below mean and interval the seeds stand, in rows, so that neither covers the other."""


def seeds(frame: Frame) -> Plot | str:
    """Every seed's mIoU with mean and interval, and the same of the gain paired by seed; or why it cannot be drawn."""
    title = frame.accuracy_title
    rows = sorted((row for row in frame.table if present(row.get("miou"))), key=lambda row: float(row["miou"]))
    if len(rows) < 2 or max(len(row["seed_miou"]) for row in rows) < 2:
        return f"mIoU by seed ({title}): it takes two operators, and two seeds of one of them."
    paired = any(present(row["gain"]) for row in rows)
    with style():
        figure = Figure(figsize=(7.2, 1.1 + _ROW_INCHES * len(rows)), layout="constrained")
        columns = figure.subplots(1, 1 + paired, sharey=True, squeeze=False)[0]
        _panel(columns[0], rows, "miou", lambda row: list(row["seed_miou"].values()), lambda _: True)
        columns[0].set(xlabel="mIoU (%)", yticks=range(len(rows)), ylim=(-0.7, len(rows) - 0.3))
        columns[0].set_yticklabels([label(row) for row in rows])
        ceilings = [float(row["local_ceiling"]) for row in rows if present(row.get("local_ceiling"))]
        if ceilings:
            columns[0].axvline(100 * max(ceilings), color="0.4", linewidth=0.9, linestyle="--", zorder=1)
        if paired:
            _panel(columns[1], rows, "gain", lambda row: list(row["seed_gain"].values()), lambda row: row["gain_real"])
            columns[1].axvline(0, color="0.4", linewidth=0.9, zorder=1)
            columns[1].set_xlabel(f"Gain over {CONTROL} (points)")
        handles = kind_handles({row["kind"] for row in rows}, _MARKER)
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    caption = (
        f"mIoU by seed. {title[0].upper()}{title[1:]}. Dots: seeds; markers: their mean, with the 95 % interval from "
    )
    caption += "three seeds on (bootstrap over the seeds). "
    caption += "The dashed line is the local ceiling. " if ceilings else ""
    if paired:
        caption += (
            "Right: the difference to the 3x3 convolution of the same seed, with Student's 95 % interval; "
            "a filled marker is more than chance (paired t test, Holm's correction over all rows)."
        )
    state = ("frozen",) if frame.accuracy.get("freeze_backbone") else ()
    return Plot(slug("seeds", frame.accuracy["dataset"], *state, frame.accuracy["device"]), caption, figure)


def _panel(
    axes: Axes,
    rows: Sequence[Row],
    column: str,
    values: Callable[[Row], list[float]],
    filled: Callable[[Row], bool | None],
) -> None:
    """Draws, from below, the values, mean and interval of each row that has them."""
    for place, row in enumerate(rows):
        if not present(row[column]):
            continue
        shade, mean = colour(row["kind"]), 100 * float(row[column])
        dots = [100 * value for value in values(row)]
        axes.scatter(dots, [place - _BELOW] * len(dots), s=4, color="0.55", linewidths=0, zorder=2)
        if present(row[f"{column}_low"]):
            ends = [100 * float(row[f"{column}_{end}"]) for end in ("low", "high")]
            axes.plot(ends, [place, place], color=shade, linewidth=1.3, zorder=3)
        axes.plot(
            mean,
            place,
            marker=KINDS[row["kind"]][2],
            markersize=_MARKER,
            color=shade,
            markerfacecolor=shade if filled(row) else "white",
            zorder=4,
        )
    axes.grid(visible=False, axis="y")
