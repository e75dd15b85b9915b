"""Writes the report: records in, files out."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import rich.table

from attnbench.errors import UsageError
from attnbench.reading import paused_collector
from attnbench.records import Record
from attnbench.report.facts import BETWEEN, Environments, flatten, provenance
from attnbench.report.frames import Arranged, Frame, arrange, sheet
from attnbench.report.growth_tables import growth_sheets
from attnbench.report.page import render_page
from attnbench.report.plots import Plot, trade_off
from attnbench.report.render import legend, render_terminal, to_latex, to_markdown
from attnbench.report.roofline_plot import rooflines
from attnbench.report.scaling_plot import scaling
from attnbench.report.sections import MOST_TABLES, all_sections, distinct_costs
from attnbench.report.seeds_plot import seeds
from attnbench.report.tables import Table, accuracy_table, comparison_table
from attnbench.report.wording import distinct
from attnbench.report.work import work_table

MOST_ON_SCREEN = 8
MOST_ROOFLINES = 4


@dataclass(frozen=True)
class Report:
    """What was written.

    Args:
        folder: folder of the report.
        files: its files.
        frames: the comparisons, for `render_terminal`.
        skipped: sentences on what was not drawn, set aside or replaced.

    """

    folder: Path
    files: tuple[Path, ...]
    frames: tuple[Frame, ...]
    skipped: tuple[str, ...]


@paused_collector()
def write_report(
    records: Sequence[Record],
    environments: Environments,
    folder: Path,
    *,
    problems: Sequence[str] = (),
    against: Table | None = None,
) -> Report:
    """Writes tables (Markdown, CSV, LaTeX), figures (PNG, PDF) and one page of HTML.

    Args:
        records: valid records.
        environments: fingerprint by environment hash.
        folder: where to; created if it does not exist.
        problems: sentences on records that could not be read, to be repeated in the report.
        against: what changed since an earlier run.

    Raises:
        UsageError: if the folder cannot be written.

    """
    arranged = arrange(records, environments)
    compared, scored = arranged.compared[:MOST_TABLES], arranged.scored[:MOST_TABLES]
    measured = [frame for frame in compared if not frame.cost.get("predicted")]
    working = distinct_costs(measured)
    sections = all_sections(compared, scored)
    sections += [("Against an earlier run", [against])] if against else []
    few = len(arranged.compared) <= MOST_TABLES
    drawn = [*map(trade_off, measured if few else measured[:1]), *(scaling(compared) if few else ())] if records else []
    roofed = working if len(working) <= MOST_ROOFLINES else working[-1:]
    drawn += [drawing for frame in roofed for drawing in rooflines(frame)]
    drawn += map(seeds, scored if few else scored[:1])
    plots = _named_apart([plot for plot in drawn if isinstance(plot, Plot)])
    skipped = [*problems, *(reason for reason in drawn if isinstance(reason, str)), *_left_out(arranged)]
    if len(working) > len(roofed):
        skipped.append(f"The roofline is drawn for the last of {len(working)} settings; the tables have the others.")
    facts, machines = provenance(records), _machines(records, environments)
    pictures = [(plot.caption, plot.png()) for plot in plots]
    texts = {
        "comparison.md": _markdown(sections, plots, facts, machines, skipped),
        "comparison.csv": _csv(arranged.all),
        **{name: rows.to_csv(index=False, lineterminator="\n") for name, rows in growth_sheets(compared).items()},
        "comparison.tex": _latex(
            [*map(comparison_table, compared), *map(work_table, working), *map(accuracy_table, scored)]
        ),
        "index.html": render_page(sections, pictures, facts, machines, skipped),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / name for name in texts]
        for file, text in zip(files, texts.values(), strict=True):
            _replace(file, text.encode())
        for plot, (_, picture) in zip(plots, pictures, strict=True):
            for suffix, data in (("png", picture), ("pdf", plot.pdf())):
                files.append(folder / f"{plot.name}.{suffix}")
                _replace(files[-1], data)
    except OSError as error:
        raise UsageError(
            f"report folder {str(folder)!r}: expected one that can be written, got {error.strerror or error}"
        ) from error
    return Report(
        folder, tuple(files), (*compared, *arranged.all[len(arranged.compared) :][:MOST_TABLES]), tuple(skipped)
    )


def terminal_tables(report: Report) -> list[rich.table.Table | str]:
    """The first comparisons of a report for a terminal of 110 columns, and a sentence on the others."""
    shown: list[rich.table.Table | str] = [render_terminal(frame) for frame in report.frames[:MOST_ON_SCREEN]]
    more = len(report.frames) - len(shown)
    return [*shown, f"{more} more tables: {report.folder / 'comparison.md'}"] if more else shown


def _replace(file: Path, data: bytes) -> None:
    """Writes a whole file or none: a full disk or another run at the same time leaves no half of one."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _csv(frames: Sequence[Frame]) -> str:
    columns, rows = sheet(frames)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _left_out(arranged: Arranged) -> list[str]:
    """Sentences on what is in the CSV file or the records alone."""
    found: list[str] = []
    if len(arranged.compared) > MOST_TABLES:
        found.append(
            f"{len(arranged.compared) - MOST_TABLES} of {len(arranged.compared)} settings of cost stand in "
            f"comparison.csv alone: tables are drawn for the first {MOST_TABLES}, figures for the first."
        )
    if len(arranged.scored) > MOST_TABLES:
        found.append(
            f"{len(arranged.scored) - MOST_TABLES} of {len(arranged.scored)} settings of accuracy stand in "
            f"comparison.csv alone: tables are drawn for the first {MOST_TABLES}."
        )
    if arranged.replaced:
        found.append(
            f"{arranged.replaced} record(s) are not shown: the same trial was measured later with another source."
        )
    return found


def _machines(records: Sequence[Record], environments: Environments) -> dict[str, dict[str, str]]:
    keys = distinct(key for record in records for key in str(record["environment"]).split(BETWEEN))
    unknown = {"fingerprint": "not found beside the records"}
    return {f"Environment {key}": flatten(environments[key]) if key in environments else unknown for key in keys}


def _named_apart(plots: Sequence[Plot]) -> list[Plot]:
    """Plots with a number behind a name that another has already."""
    seen: dict[str, int] = {}
    named: list[Plot] = []
    for plot in plots:
        seen[plot.name] = seen.get(plot.name, 0) + 1
        name = plot.name if seen[plot.name] == 1 else f"{plot.name}-{seen[plot.name]}"
        named.append(Plot(name, plot.caption, plot.figure))
    return named


def _markdown(
    sections: Sequence[tuple[str, Sequence[Table]]],
    plots: Sequence[Plot],
    facts: Mapping[str, str],
    machines: Mapping[str, Mapping[str, str]],
    skipped: Sequence[str],
) -> str:
    lines = ["# Comparison of attention operators", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items() if value] + [""]
    if not sections:
        lines += ["No records: nothing has been measured yet.", ""]
    for heading, tables in sections:
        lines += [f"## {heading}", "", legend(tables), ""]
        for table in tables:
            lines += [f"### {table.title}", "", to_markdown(table), ""]
    if plots:
        lines += ["## Figures", ""]
        for plot in plots:
            lines += [f"![{plot.caption.partition('. ')[0]}]({plot.name}.png)", "", plot.caption, ""]
    if skipped:
        lines += ["## Not drawn, and set aside", "", *(f"- {line}" for line in skipped), ""]
    for heading, values in machines.items():
        lines += [f"## {heading}", "", *(f"- {key}: {value}" for key, value in values.items()), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _latex(tables: Sequence[Table]) -> str:
    head = "% Needs \\usepackage{booktabs}; written by attnbench, do not edit.\n"
    if not tables:
        return head + "% No records: nothing has been measured yet.\n"
    return head + "\n".join(to_latex(table) for table in tables)
