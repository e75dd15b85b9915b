"""Sheets of pictures in rows and columns, laid out in inches so that panels touch nothing and print sharply."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from attnbench.atomic import write_atomically
from attnbench.pictures.colours import Picture
from attnbench.pictures.scenes import Pixel
from attnbench.report.plots import style

FORMATS: Final = ("png", "pdf", "svg")
_METADATA: Final[dict[str, dict[str, Any]]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
}
FONT: Final = 7.0
_LINE: Final = 0.125
"""Inches of a line of text."""
_WIDTH: Final = 7.2
"""Inches across: two columns of a page."""
_LEAST: Final = 0.8
"""Inches that a panel is wide at least; a sheet with many columns is wider than a page."""
_MOST: Final = 1.5
_BARS: Final = 0.48
"""Inches of bars of colours with their words."""
_GAP: Final = 0.06
_LEFT: Final = 0.62
_MARK: Final = "#00B8D4"


RGB = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Sheet:
    """A finished sheet.

    Args:
        name: name of its file, without suffix.
        caption: what a reader sees.
        figure: the figure.
    """

    name: str
    caption: str
    figure: Figure

    def data(self, kind: str, dpi: int) -> bytes:
        """The sheet as `"png"`, `"pdf"` or `"svg"`; equal sheets give equal bytes."""
        buffer = io.BytesIO()
        with style():
            if kind == "png":
                self.figure.savefig(
                    buffer, format="png", dpi=dpi, metadata=_METADATA[kind], pil_kwargs={"optimize": True}
                )
            else:
                self.figure.savefig(buffer, format=kind, dpi=dpi, metadata=_METADATA[kind])
        return buffer.getvalue()

    def write(self, folder: Path, kind: str, dpi: int) -> Path:
        """Writes the sheet into `folder`; returns its path.

        Raises:
            UsageError: if the folder cannot be written.
        """
        path = folder / f"{self.name}.{kind}"
        write_atomically(path, self.data(kind, dpi))
        return path


class Board:
    """Axes in rows and columns, with headings above, labels at the left, and room for a legend below.

    Args:
        headings: heading of each column.
        labels: label of each row.
        aspect: height of a panel over its width.
        notes: for each row of a group, the lines of text under its panels; a gap stands between groups.
        legend: names of colours, below the panels.
        bars: whether `scales` will be drawn below the panels.
    """

    def __init__(
        self,
        headings: Sequence[str],
        labels: Sequence[str],
        *,
        aspect: float,
        notes: Sequence[int] = (0,),
        legend: Sequence[tuple[str, RGB]] = (),
        bars: bool = False,
    ) -> None:
        columns = len(headings)
        self.panel = min(max((_WIDTH - _LEFT - _GAP * (columns - 1) - 0.05) / columns, _LEAST), _MOST)
        self.width = _LEFT + columns * (self.panel + _GAP) - _GAP + 0.05
        wrapped = [_wrapped(heading, self.panel) for heading in headings]
        top = _LINE * max(heading.count("\n") + 1 for heading in wrapped) + 0.08
        tall = self.panel * aspect
        under = [_GAP + _LINE * lines + (_GAP if place == len(notes) - 1 else 0) for place, lines in enumerate(notes)]
        downs = [top]
        for row in range(len(labels)):
            downs.append(downs[-1] + tall + under[row % len(under)])
        across = max(1, min(len(legend), int(self.width / 1.2)))
        self.height = downs[-1] + (_BARS if bars else 0.05 + 0.16 * -(-len(legend) // across))
        with style():
            self.figure = Figure(figsize=(self.width, self.height))
            self.panels: list[list[Axes]] = []
            for row in range(len(labels)):
                down = downs[row] + tall
                places = [(_LEFT + column * (self.panel + _GAP), self.height - down) for column in range(columns)]
                self.panels.append([self._axes(left, up, self.panel, tall) for left, up in places])
        for axes, heading in zip(self.panels[0], wrapped, strict=True):
            axes.set_title(heading, fontsize=FONT, pad=3, linespacing=1.15)
        if legend:
            self._legend(legend, across)
        for row_axes, label in zip(self.panels, labels, strict=True):
            row_axes[0].set_ylabel(label, fontsize=FONT, rotation=0, ha="right", va="center", labelpad=4)

    def _axes(self, left: float, up: float, wide: float, tall: float) -> Axes:
        place = (left / self.width, up / self.height, wide / self.width, tall / self.height)
        axes = self.figure.add_axes(place, xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.set_frame_on(False)
        return axes

    def _legend(self, entries: Sequence[tuple[str, RGB]], across: int) -> None:
        handles = [Patch(facecolor=colour, edgecolor="0.6", linewidth=0.4, label=name) for name, colour in entries]
        self.figure.legend(
            handles=handles,
            loc="lower center",
            ncols=across,
            frameon=False,
            fontsize=FONT,
            handlelength=1.0,
            handleheight=1.0,
            columnspacing=1.2,
            borderaxespad=0.1,
        )

    def scales(self, bars: Sequence[tuple[Colormap, str, tuple[str, ...]]]) -> None:
        """Bars of colours side by side below the panels: colours, label, and a word at each of evenly spaced places."""
        wide, apart = min(2.0, self.width / 4), 0.6
        left = (self.width - len(bars) * wide - (len(bars) - 1) * apart) / 2
        for colours, label, words in bars:
            place = (left / self.width, 0.2 / self.height, wide / self.width, 0.08 / self.height)
            axes = self.figure.add_axes(place)
            bar = self.figure.colorbar(ScalarMappable(Normalize(0, 1), colours), cax=axes, orientation="horizontal")
            bar.outline.set_linewidth(0.4)
            bar.set_ticks([index / (len(words) - 1) for index in range(len(words))], labels=list(words))
            axes.tick_params(labelsize=FONT, length=2, width=0.4, pad=1)
            axes.set_title(label, fontsize=FONT, pad=3)
            left += wide + apart


def show(axes: Axes, picture: Picture, note: str = "") -> None:
    """Draws a picture pixel by pixel, with a line of text under it."""
    axes.imshow(picture, interpolation="nearest", aspect="equal")
    axes.set_autoscale_on(False)
    axes.add_patch(
        Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor="0.6", linewidth=0.4, clip_on=False)
    )
    if note:
        axes.set_xlabel(note, fontsize=FONT, labelpad=2)


def tell(axes: Axes, text: str) -> None:
    """Says why a panel is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=FONT - 0.5, color="0.35")
    axes.add_patch(
        Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor="0.8", linewidth=0.4, clip_on=False)
    )


def mark(axes: Axes, pixel: Pixel) -> None:
    """Marks a pixel with a cross in a ring, white under cyan, legible on any colour."""
    for colour, width in (("white", 2.2), (_MARK, 1.1)):
        axes.plot(pixel[1], pixel[0], marker="x", markersize=4.5, color=colour, markeredgewidth=width, zorder=5)


def frame(axes: Axes, top: float, left: float, height: float, width: float, *, dashed: bool = False) -> None:
    """Draws a box around pixels; it may reach beyond the picture, where it is cut."""
    for colour, line in (("white", 1.6), ("black", 0.8)):
        axes.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5),
                width,
                height,
                fill=False,
                edgecolor=colour,
                linewidth=line,
                linestyle="--" if dashed and colour == "black" else "-",
                zorder=4,
            )
        )


def _wrapped(heading: str, inches: float) -> str:
    letters = max(8, int(inches / 0.062))
    return "\n".join(part for line in heading.split("\n") for part in textwrap.wrap(line, letters) or [""])
