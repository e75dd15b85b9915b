"""Complexity as papers print it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal, get_args

Status = Literal["reproduced", "not reproduced", "not attempted"]

PARAMS_UNITS: Mapping[str, int] = {"10^6": 10**6, "2^20": 2**20}
"""What one million parameters may be."""

FLOPS_UNITS: Mapping[str, int] = {"MACs": 1, "2 x MACs": 2}
"""What FLOPs may be, in multiply-accumulates."""


@dataclass(frozen=True)
class Figure:
    """One row of a paper's table.

    Args:
        id: name of the row here.
        paper: short name of the paper.
        arxiv: its number.
        table: which table, in the numbering of the source.
        method: name of the row there.
        input: shape that the figures are for.
        scope: what they cover.
        params_m: millions of parameters, as printed.
        flops_g: billions of FLOPs, as printed.
        memory: memory, as printed.
        memory_unit: its unit, as printed.
        time_ms: milliseconds; where the source prints frames per second, their inverse.
        device: what memory and time were measured on.
        source: address that the row was read at.
        status: whether the project's module has these parameters and FLOPs.
        module: name of that module, or of the nearest that was tried; empty for none.
        bar_percent: largest deviation at which a row counts as reproduced.
        params_unit: what a million of parameters is here, as found.
        flops_unit: what FLOPs are here, as found.
        note: what was built and what was left out, what was tried, or why nothing was.

    Raises:
        ValueError: if a value is outside its vocabulary or does not fit the status.
    """

    id: str
    paper: str
    arxiv: str
    table: str
    method: str
    input: str
    scope: str
    params_m: Decimal | None
    flops_g: Decimal | None
    memory: Decimal | None
    memory_unit: str
    time_ms: Decimal | None
    device: str
    source: str
    status: Status
    module: str
    bar_percent: Decimal | None
    params_unit: str
    flops_unit: str
    note: str

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(f"{self.id}: expected a status in {get_args(Status)}, got {self.status!r}")
        if (self.bar_percent is not None) != (self.status == "reproduced"):
            raise ValueError(f"{self.id}: expected a bar for rows that are reproduced, got {self.bar_percent}")
        for printed, unit, units in (
            (self.params_m, self.params_unit, PARAMS_UNITS),
            (self.flops_g, self.flops_unit, FLOPS_UNITS),
        ):
            if (unit in units) != bool(self.module and printed is not None) or (unit and unit not in units):
                raise ValueError(f"{self.id}: expected a unit in {tuple(units)} for what was computed, got {unit!r}")
        if (self.memory is not None) != bool(self.memory_unit):
            raise ValueError(f"{self.id}: expected memory with its unit, got {self.memory} {self.memory_unit!r}")
        if not self.note or not self.source.startswith("https://"):
            raise ValueError(f"{self.id}: expected a note and the address of a source, got {self.source!r}")


def load_figures() -> list[Figure]:
    """Every row of `complexity.csv`, in the order of the file.

    Example:
        >>> next(figure.flops_g for figure in load_figures() if figure.id == "emanet-512")
        Decimal('43.1')
    """
    return [_figure(row) for row in read("complexity.csv")]


def read(name: str) -> list[dict[str, str]]:
    """The rows of one of the files beside this module."""
    with (Path(__file__).parent / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def number(text: str) -> Decimal | None:
    """The number that is printed, with its digits; none where nothing is."""
    return Decimal(text) if text else None


def _figure(row: Mapping[str, str]) -> Figure:
    numbers = {name: number(row[name]) for name in ("params_m", "flops_g", "memory", "time_ms", "bar_percent")}
    texts = {name: text for name, text in row.items() if name not in numbers}
    return Figure(**numbers, **texts)  # type: ignore[arg-type]
