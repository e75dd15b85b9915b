"""Columns and cells of the tables: what is shown, and what stands where there is no number."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from attnbench.report.rows import CONTROL, MODES
from attnbench.report.wording import STATUSES, mean_std, present, significant

_BRIEFLY = {"out_of_memory": "OOM", "nonconforming": "failed", "unsupported": "n/a"}
_SCORED = ("status_accuracy", "params_network", "train_s")
SPREAD_LIMIT = 0.1
"""Interquartile range over median from which a latency is marked."""

Better = Literal["low", "high"] | None
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        text: what is shown.
        value: what is compared and sorted by; none where there is no number.
        short: the text without interval, for narrow media; none for the same text.
        best: whether it is the best of its column that is not a control's.

    """

    text: str
    value: float | None = None
    short: str | None = None
    best: bool = False


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        key: name of the column it stands for in `comparison.csv`.
        header: heading with its unit.
        short: heading for narrow media.
        cell: the cell of a row.
        better: which direction is better.

    """

    key: str
    header: str
    short: str
    cell: Callable[[Row], Cell]
    better: Better = None


def number(
    key: str,
    header: str,
    short: str,
    unit: float,
    *,
    bound: str | None = None,
    better: Better = "low",
    smallest: float = 0.0,
) -> Column:
    """A column of plain numbers in `unit`; below `smallest` it only says so."""

    def cell(row: Row) -> Cell:
        value = row.get(key)
        if value is None or not present(value):
            return absent(row, key)
        shown = float(value) / unit
        if shown < smallest:
            return Cell(f"< {smallest:g}", shown)
        prefix = "≥ " if bound and row.get(bound) is True else ""
        return Cell(prefix + significant(shown), shown)

    return Column(key, header, short, cell, better)


def absent(row: Row, key: str) -> Cell:
    """What stands where there is no number: the status of the trial that was to give it."""
    modes = [mode for mode in MODES if key.endswith(mode)] or list(MODES)
    tasks = ["accuracy"] if key in _SCORED else modes
    statuses = [row.get(f"status_{task}") for task in tasks]
    failed = [str(status) for status in statuses if present(status) and status not in ("ok", "not measured")]
    status = failed[0] if failed else "not measured"
    return Cell(STATUSES[status], short=_BRIEFLY.get(status))


def mode_columns(mode: str, batch: int) -> list[Column]:
    """Peak memory, latency, its ratio to the control and the rank by it, in one mode; images per second of a batch."""
    brief = {"forward": "fwd", "training": "train"}[mode]
    throughput = number(
        f"images_per_s_{mode}", f"Images/s {brief}", f"{brief.capitalize()} images/s", 1.0, better="high"
    )
    return [
        number(f"peak_mib_{mode}", f"Peak {brief} (MiB)", f"Mem {brief} (MiB)", 1.0),
        Column(
            f"latency_ms_{mode}",
            f"Latency {brief} (ms)",
            f"{brief.capitalize()} (ms)",
            _latency_cell(mode),
            "low",
        ),
        number(f"ratio_{mode}", f"{brief} / {CONTROL}", f"{brief.capitalize()} ratio", 1.0, smallest=1e-3),
        *([throughput] if batch > 1 else []),
        Column(f"rank_{mode}", f"Rank {brief}", f"{brief.capitalize()} rank", _rank_cell(mode)),
    ]


def _rank_cell(mode: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        best, worst = row.get(f"rank_{mode}"), row.get(f"rank_worst_{mode}")
        if not present(best) or not present(worst):
            return absent(row, f"rank_{mode}")
        text = f"{best:.0f}" if best == worst else f"{best:.0f}–{worst:.0f}"
        return Cell(text, best)

    return cell


def _latency_cell(mode: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        value = row.get(f"latency_ms_{mode}")
        if not present(value):
            return absent(row, f"latency_ms_{mode}")
        ends = [row[f"latency_{end}_ms_{mode}"] for end in ("low", "high")]
        interval = f" [{', '.join(significant(end) for end in ends)}]" if all(map(present, ends)) else ""
        flag = "†" if row[f"spread_{mode}"] > SPREAD_LIMIT else ""
        median = significant(row[f"latency_ms_{mode}"])
        return Cell(median + interval + flag, row[f"latency_ms_{mode}"], median + flag)

    return cell


def score_columns() -> list[Column]:
    """MIoU, its gain over the control, mAcc and aAcc."""
    names = (("miou", "mIoU (%)"), ("macc", "mAcc (%)"), ("aacc", "aAcc (%)"))
    columns = [Column(key, header, header, _score_cell(key), "high") for key, header in names]
    gain = Column("gain", "Gain (points)", "Gain", _score_cell("gain"), "high")
    return [columns[0], gain, *columns[1:]]


def boundary_columns(rows: Iterable[Row]) -> list[Column]:
    """The boundary F-score, where any row has it."""
    if not any(present(row.get("boundary_f")) for row in rows):
        return []
    header = "Boundary F (%)"
    return [Column("boundary_f", header, header, _score_cell("boundary_f"), "high")]


def _score_cell(key: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        value = row.get(key)
        if not present(value):
            return Cell(STATUSES["not measured"]) if key == "gain" else absent(row, "status_accuracy")
        seeds = int(row["gain_seeds" if key == "gain" else "seeds"])
        std = row[f"{key}_std"] if present(row[f"{key}_std"]) else None
        text = mean_std(float(row[key]), std, signed=key == "gain")
        borrowed = "‡" if row["accuracy_of"] != row["implementation"] else ""
        fewer = key == "boundary_f" and row["boundary_seeds"] < seeds
        runs = f" ({row['boundary_seeds'] if fewer else seeds})" if key in ("miou", "gain") or fewer else ""
        marks = ("*" if key == "gain" and row.get("gain_real") is True else "") + borrowed
        return Cell(text + runs + marks, 100 * float(row[key]), text + marks)

    return cell


def interval_columns() -> list[Column]:
    """Intervals of mIoU and of its gain."""
    headers = {"miou": "95 % of mIoU", "gain": "95 % of the gain"}
    return [Column(f"{key}_low", header, header, _interval_cell(key)) for key, header in headers.items()]


def _interval_cell(key: str) -> Callable[[Row], Cell]:
    sign = "+" if key == "gain" else ""

    def cell(row: Row) -> Cell:
        ends = [row.get(f"{key}_{end}") for end in ("low", "high")]
        if not all(map(present, ends)):
            return Cell(STATUSES["not measured"])
        return Cell("[" + ", ".join(f"{100 * float(end):{sign}.1f}" for end in ends if end is not None) + "]")

    return cell


def class_cell(name: str) -> Callable[[Row], Cell]:
    """Makes the cell of one class."""

    def cell(row: Row) -> Cell:
        if not present(row["iou"]):
            return absent(row, "status_accuracy")
        return percent(json.loads(row["iou"]).get(name))

    return cell


def percent(value: float | None) -> Cell:
    """A share in percent."""
    return Cell(f"{100 * value:.1f}", 100 * value) if value is not None and present(value) else Cell("–")
