"""Tables as Markdown, LaTeX and lines of a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import rich.box
import rich.table
from rich.text import Text
from tabulate import tabulate

from attnbench.report.cells import Cell
from attnbench.report.facts import machine
from attnbench.report.frames import Frame
from attnbench.report.tables import Table, accuracy_table, comparison_table
from attnbench.report.wording import distinct

_NARROW = (
    *("title", "params", "macs", "peak_mib_forward", "latency_ms_forward", "ratio_forward"),
    *("peak_mib_training", "latency_ms_training", "ratio_training", "miou", "gain", "train_s"),
    *("macs_backward", "elementwise", "intensity_forward", "bound_ms_forward", "reach_forward", "reach_training"),
)
_EXPLAINS = {"Gain:": "gain", "*:": "gain", "95 %": "miou_low", "Training loss:": "train_loss", "Rank:": "rank_forward"}
"""The column that a sentence on how to read a table is about, by how it begins."""

_MATH = {
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "§": r"\S",
    "–": "--",
    "≥": r"$\geq$",
}


def to_markdown(table: Table) -> str:
    """A pipe table with padded columns, the best in bold, and the notes on its rows as a list."""
    cells = [[_bold(_escape(cell.text)) if cell.best else _escape(cell.text) for cell in row] for row in table.rows]
    align = ["left", *["right"] * (len(table.columns) - 1)]
    headers = [_escape(column.header) for column in table.columns]
    text = tabulate(cells, headers, tablefmt="pipe", colalign=align, disable_numparse=True)
    return "\n".join([text, *([""] if table.notes else []), *(f"- {_escape(note)}" for note in table.notes)])


def legend(tables: Sequence[Table]) -> str:
    """How to read the tables, each sentence once, as a list."""
    return "\n".join(f"- {_escape(line)}" for line in distinct(line for table in tables for line in table.legend))


def to_latex(table: Table) -> str:
    """A `table*` with booktabs rules, narrow enough for a page: without intervals and FLOPs."""
    kept = _narrow(table)
    headers = [table.columns[index].short for index in kept]
    shown = {table.columns[index].key for index in kept}
    absent = tuple(start for start, key in _EXPLAINS.items() if key not in shown)
    lines = [line for line in table.legend if not line.startswith(absent)]
    labels = [_tex(header) for header in headers]
    cells = [[_tex(_short(row[index])) for index in kept] for row in table.rows]
    best = pd.DataFrame(
        [["font-weight: bold" if row[index].best else "" for index in kept] for row in table.rows],
        columns=labels,
    )
    styler = pd.DataFrame(cells, columns=labels).style.hide(axis="index").apply(lambda _: best, axis=None)
    body = str(
        styler.to_latex(
            column_format="l" + "r" * (len(kept) - 1),
            hrules=True,
            convert_css=True,
            environment="table*",
            position="tbp",
            position_float="centering",
            caption=_tex(f"{table.title}. " + " ".join([*lines, *table.notes])),
        )
    )
    setup = "\\centering\n\\scriptsize\n\\setlength{\\tabcolsep}{3pt}"
    return body.replace("\\centering", setup, 1)


def render_terminal(frame: Frame) -> rich.table.Table:
    """The frame within 110 columns of a terminal; numbers to the right, the machine and the units below."""
    table = comparison_table(frame) if frame.cost else accuracy_table(frame)
    kept = _narrow(table)
    threads = None if frame.cost else frame.accuracy.get("threads")
    caption = [table.title, machine(frame.environment, threads)]
    if frame.cost:
        caption.append("MACs are multiply-accumulates (1 MAC = 2 FLOPs); ratio: latency / conv3x3")
    shown_text = "".join(_short(cell) for row in table.rows for cell in row)
    signs = {
        "†": "interquartile range above 10 % of the median",
        "‡": "accuracy of the reference implementation",
        "*": "a gain over conv3x3 that is more than chance",
    }
    caption += [f"{sign}: {meaning}" for sign, meaning in signs.items() if sign in shown_text]
    # the whole setting takes a screen: it stands in the files
    caption += [note for note in table.notes if not note.startswith("Setting: ")]
    shown = rich.table.Table(
        box=rich.box.SIMPLE_HEAD,
        caption=Text("\n".join(filter(None, caption))),
        caption_justify="left",
        caption_style="dim",
        pad_edge=False,
        padding=(0, 0, 0, 1),
        min_width=80,
    )
    for index in kept:
        heading = table.columns[index].short.replace(" (", "\n(").replace(" ratio", "\nratio")
        shown.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*(Text(_short(row[index]), style="bold" if row[index].best else "") for index in kept))
    return shown


def render_changes(table: Table) -> rich.table.Table:
    """What changed since an earlier run, for a terminal."""
    shown = rich.table.Table(
        box=rich.box.SIMPLE_HEAD,
        title=table.title,
        caption=Text("\n".join(table.notes)),
        caption_justify="left",
        caption_style="dim",
        pad_edge=False,
        min_width=80,
    )
    for column in table.columns:
        shown.add_column(column.header)
    for row in table.rows:
        shown.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in row))
    return shown


def _narrow(table: Table) -> list[int]:
    """Columns for narrow media; beside the cost there is room for the score alone, not for what is gained by it."""
    costs = any(column.key == "macs" for column in table.columns)
    return [
        index
        for index, column in enumerate(table.columns)
        if column.key in _NARROW and not (costs and column.key == "gain")
    ]


def _short(cell: Cell) -> str:
    return cell.text if cell.short is None else cell.short


def _bold(text: str) -> str:
    return f"**{text}**"


def _escape(text: str) -> str:
    for sign in "\\|*_`<":
        text = text.replace(sign, f"\\{sign}" if sign != "<" else "&lt;")
    return " ".join(text.split())


def _tex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    special |= {sign: f"\\{sign}" for sign in "&%$#_"} | {"<": "$<$", ">": "$>$"} | _MATH
    return "".join(special.get(sign, sign) for sign in " ".join(text.split()))
