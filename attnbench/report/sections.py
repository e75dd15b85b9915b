"""The sections of a report, and the tables in each."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.report.frames import Frame
from attnbench.report.growth_tables import growth_tables
from attnbench.report.memory_tables import memory_table
from attnbench.report.tables import Table, accuracy_table, class_table, comparison_table
from attnbench.report.work import has_work, work_table

MOST_TABLES = 24
"""Settings of one kind with a table of their own; nobody reads more on one page, and the CSV file has them all."""


def all_sections(compared: Sequence[Frame], scored: Sequence[Frame]) -> list[tuple[str, list[Table]]]:
    """Every section of a report: its heading, and its tables.

    Args:
        compared: comparisons of cost, with the accuracy that was joined to them.
        scored: comparisons of accuracy.
    """
    return _sections(compared, scored) + growth_tables(compared)


def _sections(compared: Sequence[Frame], scored: Sequence[Frame]) -> list[tuple[str, list[Table]]]:
    sections: list[tuple[str, list[Table]]] = []
    if compared:
        sections.append(("Comparison", [comparison_table(frame) for frame in compared]))
        working = [work_table(frame) for frame in distinct_costs(compared) if not frame.cost.get("predicted")]
        sections.append(("Work and roofline", working))
        sections.append(("Memory", [table for frame in compared if (table := memory_table(frame)).rows]))
    if scored:
        sections.append(("Accuracy", [accuracy_table(frame) for frame in scored]))
        classes = [class_table(frame) for frame in scored]
        sections.append(("IoU of each class", [table for table in classes if len(table.columns) > 2]))
    return [(heading, tables) for heading, tables in sections if tables]


def distinct_costs(compared: Sequence[Frame]) -> list[Frame]:
    """One comparison of each cost setting, whatever it was joined with, where the records hold the work."""
    found: list[Frame] = []
    for frame in compared:
        if has_work(frame) and frame.cost not in [other.cost for other in found]:
            found.append(frame)
    return found
