"""The table on work: products, elementwise operations, bytes, and what share of the roof is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attnbench.report.cells import Cell, Column, Row, absent, number
from attnbench.report.frames import Frame
from attnbench.report.roofline import roof_of
from attnbench.report.rows import MIB, MODES
from attnbench.report.tables import Table, build_table
from attnbench.report.wording import cost_title, label, present, significant

_BRIEF = {"forward": "fwd", "training": "train"}
_LEGEND = (
    "MACs bwd: multiply-accumulates of the backward pass. Elementwise: operations that are no product (softmax, "
    "normalisation, pooling, resize, sums, exponentials, ...), by the rules of docs/measuring.md; fwd and bwd: of the "
    "forward and the backward pass.",
    "Must move: bytes of inputs, weights, outputs and, in training, gradients, each once. Moves: bytes that operations "
    "read and write, one after the other. Intensity: (2 × MACs + elementwise) / bytes that must move.",
    "Bound: the least time at the machine's own matrix rate (compute) or copy bandwidth (memory), whichever is longer. "
    "Reaches: bound / median latency. §: above 100 %, which no work does that is as counted and comes from memory: "
    "what must move lay in a cache, or a kernel multiplies less or at a lower precision than is counted.",
)


def has_work(frame: Frame) -> bool:
    """Whether a comparison has figures for the table on work; records of earlier versions have none."""
    return "elementwise" in frame.rows and bool(frame.rows["elementwise"].map(present).any())


def work_table(frame: Frame) -> Table:
    """Work, bytes and roofline of every operator in one cost setting."""
    columns = [
        Column("title", "Operator", "Operator", lambda row: Cell(label(row))),
        number("macs", "MACs fwd (G)", "MACs fwd (G)", 1e9, bound="macs_lower_bound"),
        number("macs_backward", "MACs bwd (G)", "MACs bwd (G)", 1e9),
        number("elementwise", "Elementwise fwd (M)", "Elem. fwd (M)", 1e6),
        number("elementwise_backward", "Elementwise bwd (M)", "Elem. bwd (M)", 1e6),
        *(column for mode in MODES for column in _mode_columns(mode)),
    ]
    title = f"Work and roofline: {cost_title(frame.cost)}"
    return build_table(title, columns, frame, _LEGEND, _notes(frame))


def _mode_columns(mode: str) -> list[Column]:
    brief = _BRIEF[mode]
    return [
        number(f"bytes_compulsory_{mode}", f"Must move {brief} (MiB)", f"Must {brief} (MiB)", MIB),
        number(f"bytes_moved_{mode}", f"Moves {brief} (MiB)", f"Moves {brief} (MiB)", MIB),
        number(f"intensity_{mode}", f"Intensity {brief} (op/B)", f"Int. {brief} (op/B)", 1.0, better=None),
        Column(f"bound_ms_{mode}", f"Bound {brief} (ms)", f"Bound {brief} (ms)", _bound_cell(mode)),
        Column(f"reach_{mode}", f"Reaches {brief} (%)", f"Reaches {brief} (%)", _reach_cell(mode), "high"),
    ]


def _bound_cell(mode: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        value = row.get(f"bound_ms_{mode}")
        if not present(value):
            return absent(row, f"bound_ms_{mode}")
        shown = significant(row[f"bound_ms_{mode}"])
        kind = str(row[f"bound_{mode}"])
        return Cell(f"{shown} {kind}", row[f"bound_ms_{mode}"], f"{shown} {kind[0]}")

    return cell


def _reach_cell(mode: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        value = row.get(f"reach_{mode}")
        if not present(value):
            return absent(row, f"reach_{mode}")
        share = 100 * float(row[f"reach_{mode}"])
        # What no work can do is marked, and is never the best of its column.
        return Cell(significant(share) + "§", None) if share > 100 else Cell(significant(share), share)

    return cell


def _notes(frame: Frame) -> list[str]:
    rows: list[Mapping[str, Any]] = [
        {str(key): value for key, value in row.items()} for row in frame.rows.to_dict("records")
    ]
    notes = [_roof_note(frame)]
    notes += [
        f"{label(row)}: operations without a rule, one for each element they return: {row['unruled']}."
        for row in rows
        if present(row.get("unruled"))
    ]
    for mode in MODES:
        above = [
            f"{label(row)} ({significant(100 * float(row[f'reach_{mode}']))} %)"
            for row in rows
            if present(row.get(f"reach_{mode}")) and float(row[f"reach_{mode}"]) > 1
        ]
        if above:
            notes.append(f"Above the roof, {mode}: {', '.join(above)}.")
    return notes


def _roof_note(frame: Frame) -> str:
    roof = roof_of(frame.environment, frame.cost["dtype"])
    if roof is None:
        reasons = frame.environment.get("roofline", {}).get("not_measured", {})
        why = "; ".join(f"{key}: {reason}" for key, reason in reasons.items())
        return f"No roof: the machine's rates were not measured for {frame.cost['dtype']}{f' ({why})' if why else ''}."
    return (
        f"The machine's roof: {significant(roof.operations_per_s / 1e9)} GFLOP/s in {frame.cost['dtype']} products and "
        f"{significant(roof.bytes_per_s / 1e9)} GB/s, so that work is bound by memory below "
        f"{significant(roof.ridge)} operations per byte."
    )
