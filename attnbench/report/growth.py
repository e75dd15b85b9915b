"""How cost grows: exponents over a sweep, sizes at which operators overtake each other, and the shape of the map."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from attnbench.report.frames import Frame
from attnbench.report.wording import label, present

METRICS = {
    "macs": "MACs",
    "peak_mib_forward": "peak memory, forward",
    "peak_mib_training": "peak memory, training",
    "latency_ms_forward": "latency, forward",
    "latency_ms_training": "latency, training",
}
"""Columns that are followed over a sweep."""

AXES = {"positions": ("height", "width"), "channels": ("channels",), "batch": ("batch",)}
_FEWEST = 3
_SAME_AREA = 0.02


@dataclass(frozen=True)
class Exponent:
    """A power law `y = c x^slope`, fitted to a sweep by least squares of the logarithms.

    Args:
        slope: the exponent.
        low: lower end of its 95 % confidence interval (Student's t on the residuals).
        high: its upper end.
    """

    slope: float
    low: float
    high: float


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> Exponent:
    """The exponent of `y` in `x`.

    Raises:
        ValueError: if there are fewer than three points, or one is not positive.

    Example:
        >>> round(fit_exponent([1, 2, 4, 8], [3, 12, 48, 192]).slope, 6)
        2.0
    """
    from scipy import stats

    if len(x) < _FEWEST or min(*x, *y) <= 0:
        points = list(zip(x, y, strict=True))
        raise ValueError(f"fit_exponent: expected at least {_FEWEST} positive points, got {points}")
    fit = stats.linregress([math.log(value) for value in x], [math.log(value) for value in y])
    margin = float(stats.t.ppf(0.975, len(x) - 2)) * float(fit.stderr)
    slope = float(fit.slope)
    return Exponent(slope, slope - margin, slope + margin)


@dataclass(frozen=True, eq=False)
class Sweep:
    """Frames that differ along one axis alone.

    Args:
        axis: `"positions"`, `"channels"` or `"batch"`.
        setting: the cost fields that they share.
        frames: the frames, from small to large; where the axis is the positions, of square maps.
    """

    axis: str
    setting: dict[str, Any]
    frames: tuple[Frame, ...]

    def points(self) -> list[int]:
        """Place of each frame on the axis."""
        return [math.prod(int(frame.cost[key]) for key in AXES[self.axis]) for frame in self.frames]


def sweeps(frames: Sequence[Frame]) -> list[Sweep]:
    """Every series of at least three frames that differ along one axis alone."""
    found: list[Sweep] = []
    costed = [frame for frame in frames if frame.cost]
    for axis, keys in AXES.items():
        groups: dict[str, dict[tuple[int, ...], Frame]] = {}
        for frame in costed:
            if axis == "positions" and frame.cost["height"] != frame.cost["width"]:
                continue
            rest = {key: value for key, value in frame.cost.items() if key not in keys}
            place = tuple(int(frame.cost[key]) for key in keys)
            groups.setdefault(json.dumps(rest, sort_keys=True), {}).setdefault(place, frame)
        for rest_key, members in groups.items():
            if len(members) >= _FEWEST:
                ordered = tuple(members[place] for place in sorted(members))
                found.append(Sweep(axis, json.loads(rest_key), ordered))
    return found


def _rows(frame: Frame) -> dict[str, dict[str, Any]]:
    """Rows by label."""
    return {label(row): row for row in frame.table}


def _series(sweep: Sweep, metric: str) -> dict[str, list[float]]:
    """Value of each operator at each point; NaN where there is none, or nothing to take the logarithm of."""
    values: dict[str, list[float]] = {}
    for index, frame in enumerate(sweep.frames):
        for name, row in _rows(frame).items():
            number = float(row[metric]) if present(row.get(metric)) else 0.0
            values.setdefault(name, [math.nan] * len(sweep.frames))[index] = number if number > 0 else math.nan
    return values


def exponents(sweep: Sweep) -> pd.DataFrame:
    """A row for each operator: declared growth, and the fitted exponent of each metric with its interval.

    Operators that failed at a point are fitted on the others; fewer than three leave the cell empty.
    """
    points = sweep.points()
    table: dict[str, dict[str, Any]] = {}
    for frame in sweep.frames:
        for name, row in _rows(frame).items():
            table.setdefault(name, {"operator": name, "kind": row["kind"], "declared": row.get("growth")})
    for metric in METRICS:
        for name, values in _series(sweep, metric).items():
            known = [(x, y) for x, y in zip(points, values, strict=True) if not math.isnan(y)]
            if len(known) >= _FEWEST:
                fit = fit_exponent([x for x, _ in known], [y for _, y in known])
                table[name] |= {metric: fit.slope, f"{metric}_low": fit.low, f"{metric}_high": fit.high}
    return pd.DataFrame(list(table.values()))


def crossovers(sweep: Sweep) -> pd.DataFrame:
    """Sizes at which one operator overtakes another: a row for each pair and metric whose order turns once.

    Between the two measured sizes around the turn both are taken for power laws. Latencies count where their intervals
    are apart on the smallest and on the largest map.
    """
    points = [math.log(point) for point in sweep.points()]
    rows: list[dict[str, Any]] = []
    for metric in METRICS:
        series = {name: values for name, values in _series(sweep, metric).items() if not any(map(math.isnan, values))}
        for one, other in itertools.combinations(series, 2):
            gaps = [math.log(a / b) for a, b in zip(series[one], series[other], strict=True)]
            turns = [index for index in range(len(gaps) - 1) if gaps[index] * gaps[index + 1] < 0]
            if len(turns) != 1 or (metric.startswith("latency") and not _apart(sweep, metric, one, other)):
                continue
            index = turns[0]
            share = gaps[index] / (gaps[index] - gaps[index + 1])
            at = math.exp(points[index] + share * (points[index + 1] - points[index]))
            cheaper, dearer = (other, one) if gaps[-1] > 0 else (one, other)
            rows.append({"metric": metric, "cheaper above": cheaper, "than": dearer, "positions": at})
    return pd.DataFrame(rows, columns=["metric", "cheaper above", "than", "positions"])


def _apart(sweep: Sweep, metric: str, one: str, other: str) -> bool:
    """Whether two latencies differ beyond their intervals on the smallest and on the largest map."""
    low, high = (metric.replace("latency", f"latency_{end}") for end in ("low", "high"))
    for frame in (sweep.frames[0], sweep.frames[-1]):
        rows = _rows(frame)
        ends = [rows[name][end] for name in (one, other) for end in (low, high)]
        if not all(map(present, ends)) or (ends[0] <= ends[3] and ends[2] <= ends[1]):
            return False
    return True


@dataclass(frozen=True, eq=False)
class Shapes:
    """A square map, and maps of other shapes with as many positions (to 2 %) in the same setting.

    Args:
        square: the square map.
        others: the others, from tall to wide.
    """

    square: Frame
    others: tuple[Frame, ...]


def shapes(frames: Sequence[Frame]) -> list[Shapes]:
    """Every square map that others of the same area stand beside."""
    found: list[Shapes] = []
    costed = [(frame, *_sides_and_rest(frame)) for frame in frames if frame.cost]
    for square, (height, width), rest in costed:
        others = [
            other
            for other, sides, own_rest in costed
            if own_rest == rest and sides[0] != sides[1] and abs(math.prod(sides) / (height * width) - 1) <= _SAME_AREA
        ]
        if height == width and others:
            found.append(Shapes(square, tuple(sorted(others, key=lambda frame: -int(frame.cost["height"])))))
    return found


def _sides_and_rest(frame: Frame) -> tuple[tuple[int, int], dict[str, Any]]:
    rest = dict(frame.cost)
    return (int(rest.pop("height")), int(rest.pop("width"))), rest


def shape_ratios(compared: Shapes) -> pd.DataFrame:
    """Cost of each operator on each shape, over its cost on the square map; a column for each shape and metric."""
    rows = {name: {"operator": name, "kind": row["kind"]} for name, row in _rows(compared.square).items()}
    base = _rows(compared.square)
    for other in compared.others:
        for name, row in _rows(other).items():
            for metric in METRICS:
                if name in base and present(row.get(metric)) and present(base[name].get(metric)) and base[name][metric]:
                    key = f"{other.cost['height']}×{other.cost['width']}: {METRICS[metric]}"
                    rows[name][key] = float(row[metric]) / float(base[name][metric])
    return pd.DataFrame(list(rows.values()))
