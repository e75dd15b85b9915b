"""Published figures beside ours: one page, two sheets, and tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import rich.box
import rich.table

from attnbench.errors import UsageError
from attnbench.published import Figure, Outcome, ZooEntry, ZooRow
from attnbench.published.figures import Status
from attnbench.report.render import to_markdown
from attnbench.report.rows import MIB
from attnbench.report.tables import Table
from attnbench.report.wording import distinct, significant
from attnbench.report.zoo import NONE, head_row, plain_table, zoo_section

COMMAND = "python scripts/compare.py --published"

_HEAD = f"""\
# Published figures beside ours

Written by `{COMMAND}`; do not edit. The rows and where each was read stand in `attnbench/published/`.

What papers print under one name is not one quantity: FLOPs are multiply-accumulates here and twice as many there, a
million is 10^6 or 2^20, and what is left out differs. So every row is built as its source describes it, its
parameters and multiply-accumulates are computed, and the convention under which both agree is part of the result.

- **published** is what the source prints. **computed** is ours, in the row's units and less what it leaves out.
- **reproduced**: parameters and FLOPs both agree within the row's bar (1 %; where the source leaves widths open, 2 or
  3 %). **not reproduced**: they do not; the nearest attempt is shown, and what was tried is listed. **not attempted**:
  listed with the reason.
- **Predicted peak** is ours alone: the peak of live tensors above parameters and inputs
  ([docs/measuring.md](../../docs/measuring.md)), predicted without running anything, in float32. **Published memory**
  and **time** come from GPUs of other years, with other software and other definitions. They stand beside ours for
  orientation and are compared with nothing.
"""


@dataclass(frozen=True)
class PublishedReport:
    """What was computed, and where it was written.

    Args:
        outcomes: papers' rows.
        entries: methods of the zoo.
        files: what was written.
    """

    outcomes: Sequence[Outcome]
    entries: Sequence[ZooEntry]
    files: tuple[Path, ...]


def write_published(
    outcomes: Sequence[Outcome], entries: Sequence[ZooEntry], zoo: Sequence[ZooRow], folder: Path
) -> PublishedReport:
    """Writes `published.md`, `published.csv` and `published-heads.csv`.

    Args:
        outcomes: papers' rows beside what was computed for them.
        entries: methods of the zoo beside the cost of their heads.
        zoo: every row of the zoo, for the gains over FCN.
        folder: where to; created if it does not exist.

    Raises:
        UsageError: if the folder cannot be written.
    """
    texts = {
        "published.md": _page(outcomes, entries, zoo),
        "published.csv": _sheet(_outcome_row(outcome) for outcome in outcomes),
        "published-heads.csv": _sheet(head_row(entry, run, zoo) for entry in entries for run in entry.runs),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"report folder {str(folder)!r}: expected one that can be written, got {error.strerror or error}"
        ) from error
    return PublishedReport(outcomes, entries, tuple(folder / name for name in texts))


def published_tables(report: PublishedReport) -> list[rich.table.Table]:
    """Every row that was built, for a terminal of 110 columns."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    for index, heading in enumerate(("Paper", "Method", "Params (M)", "ours", "FLOPs (G)", "ours", "off", "")):
        table.add_column(heading, justify="left" if index in (0, 1, 7) else "right", no_wrap=True)
    for outcome in report.outcomes:
        if outcome.computed is not None:
            figure = outcome.figure
            params = _printed(figure.params_m), _number(outcome.params_m)
            flops = _printed(figure.flops_g), _number(outcome.flops_g)
            largest = _percent(outcome.largest_deviation).lstrip("+")
            table.add_row(figure.paper, figure.method, *params, *flops, largest, figure.status)
    return [table]


def counts(outcomes: Iterable[Outcome]) -> str:
    """How many rows have each status.

    Example:
        >>> counts([])
        '0 rows reproduced, 0 not reproduced, 0 not attempted'
    """
    found = Counter(outcome.figure.status for outcome in outcomes)
    rest = [f"{found[status]} {status}" for status in get_args(Status)[1:]]
    return ", ".join([f"{found['reproduced']} rows reproduced", *rest])


def _page(outcomes: Sequence[Outcome], entries: Sequence[ZooEntry], zoo: Sequence[ZooRow]) -> str:
    lines = [_HEAD, f"In this file: {counts(outcomes)}.", "", "## Conventions found", ""]
    lines += [to_markdown(_conventions(outcomes)), ""]
    for _, group in groupby(outcomes, lambda outcome: (outcome.figure.paper, outcome.figure.table)):
        lines += _section(list(group))
    return "\n".join([*lines, zoo_section(entries, zoo)])


def _conventions(outcomes: Sequence[Outcome]) -> Table:
    """One row for each table of which a row was reproduced."""
    found: dict[tuple[str, str, str, str], int] = {}
    for outcome in outcomes:
        figure = outcome.figure
        if figure.status == "reproduced":
            key = (figure.paper, figure.table, figure.flops_unit, figure.params_unit)
            found[key] = found.get(key, 0) + 1
    headers = ("Paper", "Table", "FLOPs are", "A million parameters is", "Rows")
    rows = [[*(text or "not printed" for text in key), str(count)] for key, count in found.items()]
    return plain_table(headers, rows)


def _section(outcomes: Sequence[Outcome]) -> list[str]:
    figure = outcomes[0].figure
    link = f"[arXiv:{figure.arxiv}](https://arxiv.org/abs/{figure.arxiv})"
    lines = [f"## {figure.paper}: {figure.table}", "", link, ""]
    for label, attribute in (("Input", "input"), ("Covers", "scope"), ("Device", "device"), ("Read at", "source")):
        values = distinct(str(getattr(outcome.figure, attribute)) for outcome in outcomes)
        lines += [f"- {label}: {'; '.join(filter(None, values))}"] if any(values) else []
    rows = [[text(outcome) for _, text in _COLUMNS] for outcome in outcomes]
    lines += ["", to_markdown(plain_table([header for header, _ in _COLUMNS], rows))]
    notes: dict[str, list[Figure]] = {}
    for outcome in outcomes:
        notes.setdefault(outcome.figure.note, []).append(outcome.figure)
    lines += ["", *(f"- {', '.join(distinct(f.method for f in found))}: {note}" for note, found in notes.items()), ""]
    return lines


def _peak(attribute: str) -> Callable[[Outcome], str]:
    def text(outcome: Outcome) -> str:
        return NONE if outcome.computed is None else significant(getattr(outcome.computed, attribute) / MIB)

    return text


def _memory(outcome: Outcome) -> str:
    figure = outcome.figure
    return NONE if figure.memory is None else f"{figure.memory} {figure.memory_unit}"


_COLUMNS: Sequence[tuple[str, Callable[[Outcome], str]]] = [
    ("Method", lambda outcome: outcome.figure.method),
    ("Status", lambda outcome: outcome.figure.status),
    ("Params (M), published", lambda outcome: _printed(outcome.figure.params_m)),
    ("computed", lambda outcome: _number(outcome.params_m)),
    ("deviation", lambda outcome: _percent(outcome.params_deviation)),
    ("FLOPs (G), published", lambda outcome: _printed(outcome.figure.flops_g)),
    ("computed", lambda outcome: _number(outcome.flops_g)),
    ("deviation", lambda outcome: _percent(outcome.flops_deviation)),
    ("FLOPs are", lambda outcome: outcome.figure.flops_unit or NONE),
    ("M is", lambda outcome: outcome.figure.params_unit or NONE),
    ("Predicted peak, forward (MiB)", _peak("peak_forward")),
    ("training (MiB)", _peak("peak_training")),
    ("Published memory", _memory),
    ("Published time (ms)", lambda outcome: _printed(outcome.figure.time_ms)),
]


def _printed(value: Decimal | None) -> str:
    return NONE if value is None else str(value)


def _number(value: float | None) -> str:
    return NONE if value is None else significant(value, 4)


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:+z.1f} %"


def _sheet(rows: Iterable[dict[str, Any]]) -> str:
    return pd.DataFrame(list(rows)).to_csv(index=False, lineterminator="\n")


def _outcome_row(outcome: Outcome) -> dict[str, Any]:
    figure, computed = outcome.figure, outcome.computed
    published = ("params_m", "flops_g", "memory", "memory_unit", "time_ms")
    return {
        **{name: getattr(figure, name) for name in ("id", "paper", "arxiv", "table", "method", "input", "scope")},
        **{f"published_{name}": getattr(figure, name) for name in published},
        **{name: getattr(figure, name) for name in ("device", "source", "status", "params_unit", "flops_unit")},
        "computed_params_m": outcome.params_m,
        "computed_flops_g": outcome.flops_g,
        "params_deviation": outcome.params_deviation,
        "flops_deviation": outcome.flops_deviation,
        "bar_percent": figure.bar_percent,
        "predicted_peak_mib_forward": computed and computed.peak_forward / MIB,
        "predicted_peak_mib_training": computed and computed.peak_training / MIB,
        "note": figure.note,
    }
