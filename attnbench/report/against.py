"""A run held against an earlier one: what became slower, hungrier or less accurate, beyond a margin and beyond chance.

What is exact (parameters, MACs) is compared exactly, peaks with a relative margin. Latency is compared as the ratio to
the control, whose interval is that of a median; milliseconds are shown for one and the same machine alone. mIoU is
compared by seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from attnbench.records import Record, trial_key
from attnbench.report.cells import Cell, Column
from attnbench.report.facts import machine
from attnbench.report.tables import Table
from attnbench.report.wording import STATUSES, accuracy_title, cost_title, label, significant
from attnbench.statistics import mean_interval, median, summarise_ratio

Verdict = Literal["worse", "better", "same", "undecided"]
Environments = Mapping[str, Mapping[str, Any]]
_EXACT = (("params", "parameters"), ("macs", "MACs"))
_HEADERS = ("Operator", "Setting", "Measure", "Then", "Now", "Change", "Verdict")


@dataclass(frozen=True)
class Margins:
    """What is let pass.

    Args:
        latency: relative growth of the ratio to the control.
        elsewhere: the same where the two were measured on different machines.
        memory: relative growth of the peak.
        accuracy: loss of mIoU, in points of percent.
    """

    latency: float = 0.1
    elsewhere: float = 1.0
    memory: float = 0.0
    accuracy: float = 0.5


@dataclass(frozen=True)
class Change:
    """One measure of one trial, then and now.

    Args:
        record: a record of the trial, for its names.
        measure: what is compared.
        then: the earlier figure, as shown.
        now: the later figure, as shown.
        change: the difference with its interval, as shown.
        verdict: what it comes to.
    """

    record: Record
    measure: str
    then: str
    now: str
    change: str
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """All changes, and what could not be compared.

    Args:
        changes: one for each measure of each trial that both hold.
        notes: sentences on how it was compared, and on what only one of them holds.
    """

    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> list[Change]:
        """What became worse."""
        return [change for change in self.changes if change.verdict == "worse"]

    def table(self, title: str) -> Table:
        """Everything that is not the same."""
        shown = [change for change in self.changes if change.verdict != "same"]
        columns = [
            Column("title" if header == "Operator" else header.lower(), header, header, lambda _: Cell(""))
            for header in _HEADERS
        ]
        kinds = [str(change.record["kind"]) for change in shown]
        return Table(title, columns, [_cells(change) for change in shown], kinds, (), (*self.notes, self.summary()))

    def summary(self) -> str:
        """One sentence."""
        counts = {verdict: sum(c.verdict == verdict for c in self.changes) for verdict in ("worse", "better")}
        undecided = sum(change.verdict == "undecided" for change in self.changes)
        text = f"{len(self.changes)} figures compared: {counts['worse']} worse, {counts['better']} better"
        return text + (f", {undecided} undecided." if undecided else ".")


def compare(
    now: Sequence[Record], then: Sequence[Record], environments: Environments, margins: Margins | None = None
) -> Comparison:
    """Holds the records `now` against those of `then`, trial by trial, whatever the environment, source and commit.

    Args:
        now: records of this run.
        then: records of the earlier run.
        environments: fingerprints of both, by hash.
        margins: what is let pass; the defaults of `Margins` where none.
    """
    margins = margins or Margins()
    current, earlier = latest_by_trial(now), latest_by_trial(then)
    both = [key for key in current if key in earlier]
    changes: list[Change] = []
    apart = False
    for key in both:
        new, old = current[key], earlier[key]
        same = _machine(new, environments) == _machine(old, environments) != ""
        apart |= not same and new["task"] == "cost"
        changes += _of_trial(new, old, margins, same)
    changes += _accuracy([(current[key], earlier[key]) for key in both], margins)
    return Comparison(tuple(changes), tuple(_notes(len(both), len(current), len(earlier), apart, margins)))


def latest_by_trial(records: Sequence[Record]) -> dict[str, Record]:
    """The latest record of each trial, whatever the machine and the code."""
    ordered = sorted(records, key=lambda record: str(record["started"]))
    return {trial_key(record): record for record in ordered}


def _machine(record: Record, environments: Environments) -> str:
    """Hardware and threads, whatever the versions of the software; empty where it is not known."""
    environment = environments.get(record["environment"], {})
    kept = {key: environment[key] for key in ("device", "cpu", "threads") if key in environment}
    kept["cuda"] = environment.get("cuda", {}).get("name")
    return json.dumps(kept, sort_keys=True) if machine(environment) else ""


def _of_trial(new: Record, old: Record, margins: Margins, same_machine: bool) -> Iterator[Change]:
    if new["status"] != old["status"]:
        verdict: Verdict = "worse" if old["status"] == "ok" else "better" if new["status"] == "ok" else "undecided"
        then, after = (STATUSES.get(record["status"], "ok") for record in (old, new))
        yield Change(new, "status", then, after, str(new.get("reason", "")), verdict)
    if new["status"] != "ok" or old["status"] != "ok":
        return
    for name, measure in _EXACT:
        yield _exact(new, old, name, measure, 0.0)
    if new["task"] == "cost":
        yield _exact(new, old, "peak_bytes", "peak bytes", margins.memory)
        yield _latency(new, old, margins.latency if same_machine else margins.elsewhere, same_machine)


def _exact(new: Record, old: Record, name: str, measure: str, margin: float) -> Change:
    before, after = old.get(name, 0), new.get(name, 0)
    worse = after > before * (1 + margin)
    better = after < before * (1 - margin)
    verdict: Verdict = "worse" if worse else "better" if better else "same"
    change = f"{100 * (after / before - 1):+.2f} %" if before else f"{after - before:+d}"
    return Change(new, measure, f"{before:,}", f"{after:,}", change, verdict)


def _latency(new: Record, old: Record, margin: float, same_machine: bool) -> Change:
    """Growth of the ratio to the control.

    Its interval is that of the two medians' quotient at their worst: `[low' / high, high' / low]`, which holds with at
    least the probability that both hold.
    """
    ratios = [summarise_ratio(record["samples_ms"], record["control_samples_ms"]) for record in (old, new)]
    shown = [significant(ratio.median) for ratio in ratios]
    if same_machine:
        times = [significant(median(record["samples_ms"])) for record in (old, new)]
        shown = [f"{text} ({time} ms)" for text, time in zip(shown, times, strict=True)]
    growth = ratios[1].median / ratios[0].median
    if None in (ratios[0].low, ratios[0].high, ratios[1].low, ratios[1].high):
        change = f"×{significant(growth)}, no interval with fewer than six samples"
        return Change(new, "latency / conv3x3", shown[0], shown[1], change, "undecided")
    low, high = ratios[1].low / ratios[0].high, ratios[1].high / ratios[0].low  # type: ignore[operator]
    verdict: Verdict = "worse" if low > 1 + margin else "better" if high < 1 / (1 + margin) else "same"
    change = f"×{significant(growth)} [{significant(low)}, {significant(high)}]"
    return Change(new, "latency / conv3x3", shown[0], shown[1], change, verdict)


def _accuracy(pairs: Sequence[tuple[Record, Record]], margins: Margins) -> Iterator[Change]:
    groups: dict[str, list[tuple[Record, Record]]] = {}
    for new, old in pairs:
        if new["task"] == "accuracy" and new["status"] == old["status"] == "ok":
            groups.setdefault(trial_key(new, seeds=False), []).append((new, old))
    for group in groups.values():
        sides = [[100 * float(record["miou"]) for record in side] for side in zip(*group, strict=True)]
        mean, low, high = mean_interval([new - old for new, old in zip(*sides, strict=True)])
        figures = [sum(side) / len(side) for side in sides]
        seeds = f"{len(group)} seed{'' if len(group) == 1 else 's'}"
        verdict: Verdict = "same"
        if low is None or high is None:
            change = f"{mean:+.2f} points, no interval with one seed"
            verdict = "same" if abs(mean) <= margins.accuracy else "undecided"
        else:
            change = f"{mean:+.2f} points [{low:+.2f}, {high:+.2f}], {seeds}"
            verdict = "worse" if high < -margins.accuracy else "better" if low > margins.accuracy else "same"
        yield Change(group[0][0], "mIoU (%)", f"{figures[1]:.2f}", f"{figures[0]:.2f}", change, verdict)


def _notes(both: int, current: int, earlier: int, apart: bool, margins: Margins) -> Iterator[str]:
    yield (
        f"Margins: latency ratio {100 * margins.latency:g} %, peak {100 * margins.memory:g} %, "
        f"mIoU {margins.accuracy:g} points; parameters and MACs exactly."
    )
    if apart:
        yield (
            "Measured on different machines: milliseconds are not compared; ratios to conv3x3 are, with a margin of "
            f"{100 * margins.elsewhere:g} %."
        )
    if both < current:
        yield f"{current - both} of {current} trials have no counterpart in the earlier run."
    if both < earlier:
        yield f"{earlier - both} of {earlier} trials of the earlier run were not measured in this one."


def _cells(change: Change) -> list[Cell]:
    record = change.record
    setting = f"{cost_title(record)}, {record['mode']}" if record["task"] == "cost" else accuracy_title(record)
    texts = (label(record), setting, change.measure, change.then, change.now, change.change, change.verdict)
    return [Cell(text, best=change.verdict == "worse" and text == change.verdict) for text in texts]
