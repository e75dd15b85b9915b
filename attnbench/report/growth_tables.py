"""Tables of how cost grows: exponents, crossovers and shapes, from the figures of `attnbench.report.growth`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from attnbench.report.cells import Cell, Column
from attnbench.report.frames import Frame
from attnbench.report.growth import METRICS, Shapes, Sweep, crossovers, exponents, shape_ratios, shapes, sweeps
from attnbench.report.tables import Table
from attnbench.report.wording import cost_title, present, significant

_AXES = {"positions": "positions N = H × W", "channels": "channels C", "batch": "batch size"}
_EXPONENT_LEGEND = (
    "Exponent of a power law, fitted to the sweep by least squares of the logarithms, with the 95 % confidence "
    "interval of the fit (Student's t): a wide interval says that the points do not lie on a line, as where a term of "
    "lower order still weighs. Declared: the exponent in the limit."
)
_CROSSOVER_LEGEND = (
    "Where the order of two operators turns once within the sweep: a power law between the two measured sizes around "
    "the turn. Latencies count where the 95 % intervals are apart at both ends of the sweep."
)
_SHAPE_LEGEND = "Cost on a map of this shape as a multiple of the cost on the square map with as many positions."


def growth_tables(frames: Sequence[Frame]) -> list[tuple[str, list[Table]]]:
    """Sections on sweeps and shapes, where the records hold any."""
    swept = sweeps(frames)
    sections = [
        ("Growth", [_exponent_table(sweep) for sweep in swept]),
        ("Crossovers", [_crossover_table(sweep) for sweep in swept if sweep.axis == "positions"]),
        ("Shape of the map", [_shape_table(compared) for compared in shapes(frames)]),
    ]
    return [(heading, kept) for heading, tables in sections if (kept := [table for table in tables if table.rows])]


def growth_sheets(frames: Sequence[Frame]) -> dict[str, pd.DataFrame]:
    """The same figures unrounded, by file name."""
    swept = sweeps(frames)
    sheets = {
        "exponents.csv": [_told(exponents(sweep), sweep) for sweep in swept],
        "crossovers.csv": [_told(crossovers(sweep), sweep) for sweep in swept if sweep.axis == "positions"],
    }
    return {name: pd.concat(parts, ignore_index=True) for name, parts in sheets.items() if parts}


def _told(rows: pd.DataFrame, sweep: Sweep) -> pd.DataFrame:
    told = rows.copy()
    for position, (key, value) in enumerate({"axis": sweep.axis, **sweep.setting}.items()):
        told.insert(position, key, str(value))
    return told


def _title(sweep: Sweep) -> str:
    fixed = cost_title(sweep.frames[0].cost)
    points = " to ".join(str(point) for point in (sweep.points()[0], sweep.points()[-1]))
    return f"In {_AXES[sweep.axis]}, from {points} ({len(sweep.frames)} points; the first: {fixed})"


def _exponent_table(sweep: Sweep) -> Table:
    columns = [_column("operator", "Operator")]
    columns += [_column("declared", "Declared")] if sweep.axis == "positions" else []
    columns += [_column(metric, name[0].upper() + name[1:]) for metric, name in METRICS.items()]
    rows, kinds = [], []
    for row in exponents(sweep).to_dict("records"):
        cells = {metric: _exponent_cell(row, metric) for metric in METRICS}
        declared = row.get("declared")
        cells |= {"operator": Cell(str(row["operator"]))}
        cells |= {"declared": Cell(f"{declared:g}", declared) if present(declared) else Cell("–")}
        rows.append([cells[column.key] for column in columns])
        kinds.append(str(row["kind"]))
    return Table(_title(sweep), columns, rows, kinds, (_EXPONENT_LEGEND,))


def _exponent_cell(row: dict[Any, Any], metric: str) -> Cell:
    slope = row.get(metric)
    if not present(slope):
        return Cell("–")
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return Cell(f"{slope:.2f} [{low:.2f}, {high:.2f}]", slope, f"{slope:.2f}")


def _crossover_table(sweep: Sweep) -> Table:
    """Pairs by rows, metrics by columns; the side of a square map at the turn."""
    columns = [_column("operator", "Above this size")]
    columns += [_column(metric, name[0].upper() + name[1:]) for metric, name in METRICS.items()]
    turns: dict[tuple[str, str], dict[str, float]] = {}
    for row in crossovers(sweep).to_dict("records"):
        pair = (str(row["cheaper above"]), str(row["than"]))
        turns.setdefault(pair, {})[str(row["metric"])] = float(row["positions"])
    rows = []
    for (cheaper, dearer), found in sorted(turns.items(), key=lambda item: item[0][::-1]):
        cells = [_side_cell(found.get(metric)) for metric in METRICS]
        rows.append([Cell(f"{cheaper} overtakes {dearer}"), *cells])
    return Table(_title(sweep), columns, rows, ["attention"] * len(rows), (_CROSSOVER_LEGEND,))


def _side_cell(positions: float | None) -> Cell:
    if positions is None:
        return Cell("–")
    side = math.sqrt(positions)
    return Cell(f"{side:.0f}×{side:.0f}", side)


def _shape_table(compared: Shapes) -> Table:
    ratios = shape_ratios(compared)
    keys = [str(key) for key in ratios if key not in ("operator", "kind")]
    columns = [_column("operator", "Operator"), *(_column(key, key) for key in keys)]
    rows, kinds = [], []
    for row in ratios.to_dict("records"):
        cells = [Cell(significant(row[key]), row[key]) if present(row[key]) else Cell("–") for key in keys]
        rows.append([Cell(str(row["operator"])), *cells])
        kinds.append(str(row["kind"]))
    return Table(f"Against {cost_title(compared.square.cost)}", columns, rows, kinds, (_SHAPE_LEGEND,))


def _column(key: str, header: str) -> Column:
    """A heading; the cells of these tables are made row by row."""
    return Column(key, header, header, lambda _: Cell(""))
