"""Networks that two folders trained with the same seed: what a score owes to the machine that it was computed on."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from attnbench.errors import UsageError
from attnbench.records import Record
from attnbench.report.against import latest_by_trial
from attnbench.report.cells import Cell, Column
from attnbench.report.tables import Table
from attnbench.report.wording import label

_LEGEND = (
    "Mean mIoU (%) over the seeds that both have, and the differences (points) of the second to the first, seed by "
    "seed."
)
_SETTINGS = ("network.", "recipe.", "inference.")
_HEADERS = ("Operator", "First", "Second", "Differences by seed")


@dataclass(frozen=True)
class Retrained:
    """One operator, trained twice.

    Args:
        title: its name in tables.
        kind: control or not.
        seeds: the seeds.
        first: mIoU of each in the first folder, in percent.
        second: mIoU of each in the second folder, in percent.
    """

    title: str
    kind: str
    seeds: tuple[int, ...]
    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def differences(self) -> list[float]:
        """Of the second to the first, in points."""
        return [second - first for first, second in zip(self.first, self.second, strict=True)]


def retrained(
    first: Sequence[Record], second: Sequence[Record], without: Collection[str] = (), ignoring: Collection[str] = ()
) -> list[Retrained]:
    """The operators that both trained with one recipe, whatever the machine, the largest difference first.

    Args:
        first: records of one run.
        second: records of the other.
        without: operators that are left out, such as those that were changed in between.
        ignoring: settings that may differ, such as `recipe.amp`.
    """
    old, new = (
        {key: record for key, record in latest_by_trial(_stripped(records, ignoring)).items() if "miou" in record}
        for records in (first, second)
    )
    pairs: dict[str, list[tuple[Record, Record]]] = {}
    for key in old:
        if key in new and old[key]["operator"] not in without:
            pairs.setdefault(label(old[key]), []).append((old[key], new[key]))
    found = [_of_operator(title, both) for title, both in pairs.items()]
    return sorted(found, key=lambda item: -max(map(abs, item.differences)))


def _stripped(records: Sequence[Record], ignoring: Collection[str]) -> list[Record]:
    return [{name: value for name, value in record.items() if name not in ignoring} for record in records]


def differing(first: Sequence[Record], second: Sequence[Record], ignoring: Collection[str]) -> str:
    """What the ignored settings were in the two runs, for `sentence`.

    Raises:
        UsageError: if one is no setting of a training, or only one of its values is in both runs.
    """
    parts = []
    for name in ignoring:
        sides = [sorted({str(record[name]) for record in records if name in record}) for records in (first, second)]
        if not name.startswith(_SETTINGS) or not all(sides) or sides[0] == sides[1]:
            raise UsageError(
                f"ignoring: expected settings in which the runs differ, such as recipe.amp, got {name!r}, "
                f"which is {' and '.join(sides[0]) or 'absent'} in the first, "
                f"{' and '.join(sides[1]) or 'absent'} in the second"
            )
        parts.append(f"{name} {' and '.join(sides[0])}, then {' and '.join(sides[1])}")
    return "; ".join(parts)


def _of_operator(title: str, pairs: list[tuple[Record, Record]]) -> Retrained:
    pairs = sorted(pairs, key=lambda pair: int(pair[0]["seed"]))
    seeds = tuple(int(old["seed"]) for old, _ in pairs)
    scores = [tuple(100 * float(pair[run]["miou"]) for pair in pairs) for run in (0, 1)]
    return Retrained(title, str(pairs[0][0]["kind"]), seeds, *scores)


def sentence(found: Sequence[Retrained], differing: str = "") -> str:
    """How far the scores of one seed lie apart; `differing` says what else was not the same."""
    apart = [
        (abs(value), item.title, seed)
        for item in found
        for seed, value in zip(item.seeds, item.differences, strict=True)
    ]
    sizes = [size for size, _, _ in apart]
    largest, title, seed = max(apart)
    other = f" ({differing})" if differing else ""
    return (
        f"Scores: of {len(apart)} networks that were trained twice with one seed{other}, half differ by less than "
        f"{statistics.median(sizes):.2f} points of mIoU, nine in ten by less than {np.quantile(sizes, 0.9):.1f}, and "
        f"one ({title}, seed {seed}) by {largest:.1f}."
    )


def retrained_table(found: Sequence[Retrained]) -> Table:
    """A row for each operator."""
    columns = [
        Column("title" if header == "Operator" else header.lower(), header, header, lambda _: Cell(""))
        for header in _HEADERS
    ]
    rows = [
        [
            Cell(item.title),
            *(Cell(f"{statistics.mean(run):.1f}") for run in (item.first, item.second)),
            Cell(", ".join(f"{value:+.1f}" for value in item.differences)),
        ]
        for item in found
    ]
    return Table("One seed, trained twice", columns, rows, [item.kind for item in found], (_LEGEND,))
