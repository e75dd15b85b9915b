"""The table of memory: peaks, what is saved for backward, and the largest tensor with its operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnbench.report.cells import Cell, Column, Row, absent, number
from attnbench.report.frames import Frame
from attnbench.report.rows import MODES
from attnbench.report.tables import Table
from attnbench.report.wording import cost_title, label, present, significant

_LEGEND = (
    "Memory on top of weights and inputs. Saved: what the forward pass of training leaves alive for the backward pass, "
    "its outputs excluded; in percent of the training peak. Largest: the largest single tensor, and the operation that "
    "made it.",
)
_DEVIATION_LEGEND = (
    "Allocator / predicted: by how much the allocator's peak exceeds the one that is predicted from the tensors alone."
)
_BRIEF = {"forward": "fwd", "training": "train"}


def memory_table(frame: Frame) -> Table:
    """Memory of every operator in one cost setting; without rows where the records are older than these figures."""
    rows = [{str(key): value for key, value in row.items()} for row in frame.rows.to_dict("records")]
    if not any(present(row.get(f"largest_mib_{mode}")) for row in rows for mode in MODES):
        return Table(cost_title(frame.cost), (), (), ())
    rows = [row for row in rows if any(present(row.get(f"status_{mode}")) for mode in MODES)]
    columns = [column for column in _columns() if column.key == "title" or _holds(column.key, rows)]
    legend = [*_LEGEND, *([_DEVIATION_LEGEND] if any("deviation" in column.key for column in columns) else [])]
    return Table(
        cost_title(frame.cost),
        columns,
        [[column.cell(row) for column in columns] for row in rows],
        [str(row["kind"]) for row in rows],
        tuple(legend),
    )


def _columns() -> list[Column]:
    return [
        Column("title", "Operator", "Operator", lambda row: Cell(label(row))),
        *(number(f"peak_mib_{mode}", f"Peak {_BRIEF[mode]} (MiB)", f"Peak {_BRIEF[mode]}", 1.0) for mode in MODES),
        number("saved_mib_training", "Saved (MiB)", "Saved", 1.0),
        Column("saved_mib_training", "Saved (% of peak)", "Saved (%)", _share),
        *(
            Column(f"largest_mib_{mode}", f"Largest {_BRIEF[mode]} (MiB)", f"Largest {_BRIEF[mode]}", _largest(mode))
            for mode in MODES
        ),
        *(
            Column(
                f"peak_deviation_{mode}",
                f"Allocator / predicted {_BRIEF[mode]} (%)",
                f"Deviation {_BRIEF[mode]}",
                _deviation(mode),
            )
            for mode in MODES
        ),
    ]


def _holds(key: str, rows: list[dict[str, Any]]) -> bool:
    return any(present(row.get(key)) for row in rows)


def _share(row: Row) -> Cell:
    saved, peak = row.get("saved_mib_training"), row.get("peak_mib_training")
    if not present(saved) or not present(peak) or not peak:
        return absent(row, "saved_mib_training")
    return Cell(f"{100 * saved / peak:.0f}", 100 * saved / peak)  # type: ignore[operator]


def _largest(mode: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        size, operation = row.get(f"largest_mib_{mode}"), row.get(f"largest_by_{mode}")
        if size is None or not present(size):
            return absent(row, f"largest_mib_{mode}")
        by = f" {operation}" if present(operation) else ""
        return Cell(significant(size) + by, size, significant(size))

    return cell


def _deviation(mode: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        value = row.get(f"peak_deviation_{mode}")
        if value is None or not present(value):
            return absent(row, f"peak_deviation_{mode}")
        return Cell(f"{100 * value:+z.1f}", 100 * value)

    return cell
