"""Frames as tables for people: cells of text, the best of each column, and the notes below."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from attnbench.report.cells import (
    Cell,
    Column,
    Row,
    boundary_columns,
    class_cell,
    interval_columns,
    mode_columns,
    number,
    percent,
    score_columns,
)
from attnbench.report.frames import Frame
from attnbench.report.rows import MODES
from attnbench.report.wording import (
    STATUSES,
    cost_title,
    details,
    distinct,
    label,
    present,
    significant,
)

_BOLD = "Bold: the best value that is not a control's."
_MODES_LEGEND = (
    "fwd: forward pass in evaluation; train: forward and backward pass. MACs: multiply-accumulates of a "
    "forward pass; FLOPs = 2 × MACs. Peak: memory on top of weights and inputs."
)
_RATIO_LEGEND = "/ conv3x3: median, over rounds, of the latency's ratio to the 3x3 convolution beside it."
_RANK_LEGEND = "Rank: by that ratio; a range where the 95 % intervals of several operators overlap, which are tied."
_COST_LEGEND = (
    _MODES_LEGEND,
    "Latency: median [95 % interval of the median]. †: interquartile range above 10 % of the median.",
    _RATIO_LEGEND,
    _RANK_LEGEND,
    _BOLD,
)
_PREDICTED_LEGEND = (
    _MODES_LEGEND,
    "Predicted: nothing was run and no tensor held; on a CPU it equals what is measured, for a GPU it knows the "
    "tensors in the allocator's blocks and not the kernels.",
    _BOLD,
)
_BRIEF = ("title", "params", "macs", "peak_mib", "ratio", "rank_forward", "miou", "gain")
_ACCURACY_LEGEND = (
    "mIoU, mAcc, aAcc: mean ± standard deviation (number of seeds).",
    "Gain: mIoU minus that of conv3x3, paired by seed.",
    "‡: has the accuracy of the reference implementation, which computes the same function (by test).",
)


_LOSS_LEGEND = (
    "Training loss: mean over the last tenth of the iterations, with an operator's own extra losses where it has some."
)
_CEILING_LEGEND = "Local ceiling: the best mIoU without seeing beyond the receptive field of the backbone."
_SEEDS_LEGEND = (
    "95 % of mIoU: percentile bootstrap over the seeds, which is too narrow for few; it says how much these runs vary, "
    "not how much another recipe would. 95 % of the gain: Student's interval of the differences paired by seed.",
    "*: the gain (or loss) is more than chance at 5 % for all rows together (paired t test, Holm's correction).",
)


@dataclass(frozen=True)
class Table:
    """A table ready to be rendered.

    Args:
        title: heading.
        columns: columns, the first of which names the row.
        rows: cells by row.
        kinds: kind of the operator of each row.
        legend: sentences on how to read it, the same for all tables of its kind.
        notes: sentences on its rows.

    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    kinds: Sequence[str]
    legend: Sequence[str] = field(default_factory=tuple)
    notes: Sequence[str] = field(default_factory=tuple)


def comparison_table(frame: Frame) -> Table:
    """Cost, and what it buys, of every operator in one setting."""
    columns = [
        Column("title", "Operator", "Operator", lambda row: Cell(label(row))),
        number("params", "Params (M)", "Params (M)", 1e6),
        number("macs", "MACs (G)", "MACs (G)", 1e9, bound="macs_lower_bound"),
        number("flops", "FLOPs (G)", "FLOPs (G)", 1e9, bound="macs_lower_bound"),
        *(column for mode in MODES for column in mode_columns(mode, int(frame.cost["batch"]))),
        *score_columns(),
    ]
    title = cost_title(frame.cost)
    if frame.accuracy:
        title += f"; mIoU: {frame.accuracy_title}"
    cost_legend = _PREDICTED_LEGEND if frame.cost.get("predicted") else _COST_LEGEND
    legend = [*cost_legend, *(_ACCURACY_LEGEND if frame.accuracy else ())]
    legend += _SEEDS_LEGEND[-1:] if _has_intervals(frame) else ()
    table = build_table(title, columns, frame, legend, [*_cost_notes(frame), *_accuracy_notes(frame)])
    return _with_ceiling(table, frame)


def brief_table(frame: Frame) -> Table:
    """What a reader chooses by: the reference implementations, with ratios for latencies and one score."""
    rows = [row for row in frame.table if row["implementation"] == "reference"]
    table = comparison_table(dataclasses.replace(frame, table=rows))
    shown = [index for index, column in enumerate(table.columns) if column.key.startswith(_BRIEF)]
    kept = (_MODES_LEGEND, _RATIO_LEGEND, _RANK_LEGEND, _BOLD, *_ACCURACY_LEGEND, _SEEDS_LEGEND[-1], _CEILING_LEGEND)
    return dataclasses.replace(
        table,
        columns=[table.columns[index] for index in shown],
        rows=[[row[index] for index in shown] for row in table.rows],
        legend=[line for line in table.legend if line in kept],
        notes=("The report beside the records has milliseconds with intervals, fused implementations and more.",),
    )


def accuracy_table(frame: Frame) -> Table:
    """Accuracy of every operator in one setting, its gain over the control and the time of training."""
    columns = [
        Column("title", "Operator", "Operator", lambda row: Cell(label(row))),
        *score_columns(),
        *interval_columns(),
        *boundary_columns(frame.table),
        number("train_loss", "Training loss", "Loss", 1.0, better=None),
        number("params_network", "Params of the network (M)", "Params (M)", 1e6),
        number("train_s", "Training (s)", "Training (s)", 1.0, better=None),
    ]
    table = build_table(
        _heading(frame),
        columns,
        frame,
        [*_ACCURACY_LEGEND, _LOSS_LEGEND, *(_SEEDS_LEGEND if _has_intervals(frame) else ()), _BOLD],
        [*_accuracy_notes(frame), f"Setting: {details(frame.accuracy)}."],
    )
    return _with_ceiling(table, frame)


def class_table(frame: Frame) -> Table:
    """IoU of each class, mean over the seeds."""
    scored = [row for row in _rows(frame) if present(row["iou"])]
    classes = list(json.loads(scored[0]["iou"])) if scored else []
    columns = [Column("title", "Operator", "Operator", lambda row: Cell(label(row)))]
    columns += [Column("iou", f"{name} (%)", name, class_cell(name), "high") for name in classes]
    columns.append(Column("miou", "mean (%)", "mean", lambda row: percent(row["miou"]), "high"))
    return build_table(_heading(frame), columns, frame, [_BOLD], [])


def _has_intervals(frame: Frame) -> bool:
    return any(present(row.get("miou_low")) for row in _rows(frame))


def _heading(frame: Frame) -> str:
    title = frame.accuracy_title
    return title[0].upper() + title[1:]


def _rows(frame: Frame) -> list[dict[str, Any]]:
    return list(frame.table)


def build_table(
    title: str, columns: Sequence[Column], frame: Frame, legend: Sequence[str], notes: Sequence[str]
) -> Table:
    """The table of a frame's rows; columns that nothing was measured for are left out, and the best is marked."""
    rows = _rows(frame)
    known = set(frame.table[0])
    kept = [c for c in columns if c.key in known and (c.key == "title" or _is_shown(c, rows))]
    kinds = [str(row["kind"]) for row in rows]
    by_column = [_mark_best(column, [column.cell(row) for row in rows], kinds) for column in kept]
    return Table(
        title,
        kept,
        [list(cells) for cells in zip(*by_column, strict=True)],
        kinds,
        tuple(legend),
        tuple(notes),
    )


def _is_shown(column: Column, rows: Sequence[Row]) -> bool:
    return any(column.cell(row).text != STATUSES["not measured"] for row in rows)


def _mark_best(column: Column, cells: list[Cell], kinds: Sequence[str]) -> list[Cell]:
    eligible = [
        cell.value for cell, kind in zip(cells, kinds, strict=True) if kind != "control" and cell.value is not None
    ]
    if column.better is None or len({significant(value) for value in eligible}) < 2:
        return cells
    best = significant(min(eligible) if column.better == "low" else max(eligible))
    return [
        Cell(cell.text, cell.value, cell.short, best=True)
        if kind != "control" and cell.value is not None and significant(cell.value) == best
        else cell
        for cell, kind in zip(cells, kinds, strict=True)
    ]


def _with_ceiling(table: Table, frame: Frame) -> Table:
    """Appends what an operator without reach of its own could get, where the task knows it."""
    ceilings = [row["local_ceiling"] for row in _rows(frame) if present(row.get("local_ceiling"))]
    if not ceilings:
        return table
    cells = [Cell("Local ceiling")]
    cells += [percent(max(ceilings)) if column.key == "miou" else Cell("–") for column in table.columns[1:]]
    rows, kinds, lines = [*table.rows, cells], [*table.kinds, "ceiling"], [*table.legend, _CEILING_LEGEND]
    return dataclasses.replace(table, rows=rows, kinds=kinds, legend=lines)


def _cost_notes(frame: Frame) -> list[str]:
    rows = _rows(frame)
    notes: list[str] = []
    for row in rows:
        if row.get("macs_lower_bound") is True:
            notes.append(f"{label(row)}: MACs are a lower bound; not counted: {row['uncounted']}.")
        for mode in MODES:
            if present(row.get(f"notes_{mode}")):
                notes.append(f"{label(row)}, {mode}: {row[f'notes_{mode}']}.")
            if row.get(f"status_{mode}") in STATUSES and row[f"status_{mode}"] != "not measured":
                notes.append(f"{label(row)}, {mode}: {STATUSES[row[f'status_{mode}']]}: {row[f'reason_{mode}']}.")
    if "network.backbone" in frame.cost:
        notes.append(f"Setting: {details(frame.cost)}.")
    return notes


def _accuracy_notes(frame: Frame) -> list[str]:
    rows = [row for row in _rows(frame) if present(row.get("status_accuracy"))]
    if not rows:
        return []
    notes: list[str] = []
    for row in rows:
        if present(row.get("source")) and present(row["source_accuracy"]) and row["source"] != row["source_accuracy"]:
            notes.append(f"{label(row)}: cost and accuracy were measured with different versions of its source.")
        if row["failed_seeds"] and row["accuracy_of"] == row["implementation"]:
            status = f"{int(row['failed_seeds'])} training run(s) failed"
            notes.append(f"{label(row)}: {status}: {row['reason_accuracy']}.")
    return distinct([*notes, *_pooling_notes(rows), *_waiting_notes(rows)])


def _pooling_notes(rows: Sequence[Row]) -> list[str]:
    """What the trainings of each block were made with, where seeds are pooled."""
    counts: dict[str, Counter[int]] = {}
    for row in rows:
        for block, seeds in json.loads(row.get("blocks") or "{}").items():
            counts.setdefault(block, Counter()).update(seeds)
    found = [
        f"Pooled, rows of each seed with {block}: "
        + ", ".join(f"seed {seed}: {number}" for seed, number in sorted(seeds.items()))
        + "."
        for block, seeds in counts.items()
    ]
    for row in rows:
        if across := json.loads(row.get("gain_across") or "[]"):
            seeds = f"seed{'' if len(across) == 1 else 's'} {', '.join(map(str, across))}"
            found.append(f"{label(row)}: its gain of {seeds} is over the 3x3 convolution of another block.")
    return found


def _waiting_notes(rows: Sequence[Row]) -> list[str]:
    shares = [float(row["data_wait_share"]) for row in rows if present(row.get("data_wait_share"))]
    if not shares:
        return []
    mean, most = (f"{100 * share:.1f} %" for share in (sum(shares) / len(shares), max(shares)))
    return [f"Training waited for data {mean} of its time, at most {most} (mean over operators, and the largest)."]
