"""Two runs of one comparison side by side: how far their latency ratios can be trusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.records import Record
from attnbench.report.cells import Cell, Column
from attnbench.report.rows import CONTROL, MODES
from attnbench.report.tables import Table
from attnbench.report.wording import label, significant
from attnbench.statistics import Summary, summarise_ratio

_LEGEND = (
    "Ratio of the latency to that of the 3x3 convolution: median [95 % interval]. ×: the intervals of the two runs do "
    "not overlap."
)

Row = tuple[str, ...]
"""An operator with its implementation, and its settings."""


@dataclass(frozen=True)
class Repeat:
    """What two runs say of one mode.

    Args:
        mode: `"forward"` or `"training"`.
        pairs: by row, the ratios of the first and of the second run.
    """

    mode: str
    pairs: dict[str, tuple[Summary, Summary]]

    @property
    def overlapping(self) -> float:
        """Share of the operators whose two intervals overlap."""
        return sum(map(_overlap, self.pairs.values())) / len(self.pairs)

    @property
    def width(self) -> float:
        """Median width of all intervals, relative to the ratio."""
        return statistics.median(summary.width for pair in self.pairs.values() for summary in pair)


def _overlap(pair: tuple[Summary, Summary]) -> bool:
    first, second = pair
    ends = (first.low, first.high, second.low, second.high)
    if any(end is None for end in ends):
        return True
    low, high, other_low, other_high = ((end if end is not None else math.nan) for end in ends)
    return low <= other_high and other_low <= high


def repeats(first: Sequence[Record], second: Sequence[Record]) -> list[Repeat]:
    """The modes in which both runs timed the same trials; the control is left out, as its ratio is one."""
    found = []
    for mode in MODES:
        runs = [_ratios(records, mode) for records in (first, second)]
        names = _named([key for key in runs[0] if key in runs[1]])
        if names:
            found.append(Repeat(mode, {name: (runs[0][key], runs[1][key]) for key, name in names.items()}))
    return found


def _ratios(records: Sequence[Record], mode: str) -> dict[Row, Summary]:
    timed = [
        record
        for record in records
        if record["task"] == "cost"
        and record["status"] == "ok"
        and record["mode"] == mode
        and record["operator"] != CONTROL
        and "samples_ms" in record
    ]
    return {
        (label(record), *_setting(record)): summarise_ratio(record["samples_ms"], record["control_samples_ms"])
        for record in timed
    }


def _setting(record: Record) -> tuple[str, ...]:
    """What tells rows of one operator apart, in words."""
    laid = "channels last" if record.get("channels_last") else ""
    compiled = "compiled" if record.get("compiled") else ""
    size = f"{record['height']}×{record['width']}"
    sizes = (size, f"{record['channels']} channels", f"batch {record['batch']}")
    return f"{record['level']} level", *sizes, record["dtype"], laid, compiled, record["device"]


def _named(keys: Sequence[Row]) -> dict[Row, str]:
    """Names of rows: the operator's, and behind it those settings in which the rows differ."""
    apart = [index for index, values in enumerate(zip(*keys, strict=True)) if index and len(set(values)) > 1]
    return {key: ", ".join([key[0], *(key[index] for index in apart if key[index])]) for key in keys}


def sentences(found: Sequence[Repeat]) -> list[str]:
    """One sentence for each mode."""
    return [
        f"{repeat.mode.capitalize()}: the 95 % intervals of the two runs overlap for {100 * repeat.overlapping:.0f} % "
        f"of {len(repeat.pairs)} rows; their median width is {100 * repeat.width:.0f} % of the ratio."
        for repeat in found
    ]


def repeat_table(found: Sequence[Repeat]) -> Table:
    """A row for each operator, and for each mode a column for each run."""
    columns = [_column("title", "Operator")]
    for repeat in found:
        columns += [_column(f"{repeat.mode} {run}", f"{repeat.mode.capitalize()}, run {run}") for run in (1, 2)]
    names = list(dict.fromkeys(name for repeat in found for name in repeat.pairs))
    rows = [[Cell(name), *(cell for repeat in found for cell in _cells(repeat.pairs.get(name)))] for name in names]
    return Table("Two runs, one after the other", columns, rows, ["attention"] * len(rows), (_LEGEND,))


def _cells(pair: tuple[Summary, Summary] | None) -> list[Cell]:
    if pair is None:
        return [Cell("–"), Cell("–")]
    mark = "" if _overlap(pair) else " ×"
    return [Cell(_text(pair[0])), Cell(_text(pair[1]) + mark)]


def _text(summary: Summary) -> str:
    if summary.low is None or summary.high is None:
        return significant(summary.median)
    return f"{significant(summary.median)} [{significant(summary.low)}, {significant(summary.high)}]"


def _column(key: str, header: str) -> Column:
    return Column(key, header, header, lambda _: Cell(""))
