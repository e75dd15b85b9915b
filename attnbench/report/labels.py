"""Placing the labels of points so that they cover neither each other nor the points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

_DISTANCES = (1.0, 2.0, 3.5, 5.5, 8.0, 11.0, 15.0)
_DIRECTIONS = tuple(math.radians(angle) for angle in (0, 180, 45, 315, 135, 225, 90, 270, 22, 338, 158, 202))
_GAP = 2.0
_WHISKER_PENALTY = 12.0


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    radii: Sequence[float],
    bars: Sequence[float],
    *,
    fontsize: float,
) -> list[Annotation]:
    """Writes `texts` beside `points`, each at the nearest free place; a thin line leads back from far places.

    Places are tried in rings around the point and the cheapest is taken: overlap with texts and points and
    the part outside the axes cost most, then crossed error bars, then the distance. Crowded points choose first.

    Args:
        axes: axes with final limits.
        points: positions in data coordinates.
        texts: one label each.
        radii: radius of each marker in points (1/72 inch).
        bars: half the height of each error bar in data coordinates.
        fontsize: size of the letters in points.

    Returns:
        The labels; they keep clear of the texts that the axes had already.

    """
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    pixel = figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    hard = [text.get_window_extent(renderer) for text in axes.texts]
    soft: list[Bbox] = []
    centres: list[tuple[float, float]] = []
    for (x, y), radius, bar in zip(points, radii, bars, strict=True):
        across, bottom = (float(value) for value in axes.transData.transform((x, y - bar)))
        _, top = axes.transData.transform((x, y + bar))
        centre = (across, (bottom + float(top)) / 2)
        centres.append(centre)
        hard.append(_around(*centre, radius * pixel, radius * pixel))
        soft.append(Bbox.from_extents(across - pixel, bottom, across + pixel, top))
    crowding = [sum(math.dist(one, other) < 60 * pixel for other in centres) for one in centres]
    written: list[Annotation] = []
    for index in sorted(range(len(texts)), key=lambda item: (-crowding[item], item)):
        measured = figure.text(0, 0, texts[index], fontsize=fontsize)
        extent = measured.get_window_extent(renderer)
        measured.remove()
        places = _places(centres[index], (extent.width, extent.height), radii[index] * pixel, pixel)
        box = places[int(np.argmin(_costs(places, centres[index], hard, soft, frame)))]
        hard.append(box)
        written.append(_write(axes, texts[index], centres[index], box, pixel, radii[index], fontsize))
    return written


def _places(centre: tuple[float, float], size: tuple[float, float], radius: float, pixel: float) -> list[Bbox]:
    boxes: list[Bbox] = []
    for distance, angle in itertools.product(_DISTANCES, _DIRECTIONS):
        reach = radius + _GAP * pixel * distance
        x = centre[0] + math.cos(angle) * (reach + size[0] / 2)
        y = centre[1] + math.sin(angle) * (reach + size[1] / 2)
        boxes.append(_around(x, y, size[0] / 2, size[1] / 2))
    return boxes


def _costs(
    places: Sequence[Bbox], centre: tuple[float, float], hard: Sequence[Bbox], soft: Sequence[Bbox], frame: Bbox
) -> npt.NDArray[np.float64]:
    """What each place costs."""
    boxes = _extents(places)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    covered = _shared(boxes, _extents(hard)).sum(axis=1)
    outside = area - _shared(boxes, _extents([frame]))[:, 0]
    crossed = (_shared(boxes, _extents(soft)) > 0).sum(axis=1)
    far = np.array([_distance(centre, place) for place in places])
    costs: npt.NDArray[np.float64] = 1000 * (covered + outside) / area + _WHISKER_PENALTY * crossed + far
    return costs


def _extents(boxes: Sequence[Bbox]) -> npt.NDArray[np.float64]:
    return np.array([box.extents for box in boxes], dtype=np.float64)


def _write(
    axes: Axes,
    text: str,
    centre: tuple[float, float],
    box: Bbox,
    pixel: float,
    radius: float,
    fontsize: float,
) -> Annotation:
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    line = {"arrowstyle": "-", "color": "0.55", "linewidth": 0.6, "shrinkA": 0, "shrinkB": radius}
    return axes.annotate(
        text,
        tuple(axes.transData.inverted().transform(centre)),
        xytext=((x - centre[0]) / pixel, (y - centre[1]) / pixel),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=fontsize,
        arrowprops=line if _distance(centre, box) / pixel > radius + 3 * _GAP else None,
        zorder=5,
    )


def _around(x: float, y: float, half_width: float, half_height: float) -> Bbox:
    return Bbox.from_extents(x - half_width, y - half_height, x + half_width, y + half_height)


def _distance(point: tuple[float, float], box: Bbox) -> float:
    """Distance of a point from the nearest point of a box."""
    return math.dist(point, (min(max(point[0], box.x0), box.x1), min(max(point[1], box.y0), box.y1)))


def _shared(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Area that each box of `first` shares with each of `second`."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides: npt.NDArray[np.float64] = np.maximum(high - low, 0.0)
    return sides[..., 0] * sides[..., 1]
