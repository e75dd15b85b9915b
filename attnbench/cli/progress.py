"""What a run shows while it goes on: a line for each first figure, a bar with the time left, and the plan."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import operators
from attnbench.config import Experiment
from attnbench.records import Record, Trial
from attnbench.supervisor import Event

_GUESS = {"cost": 4.0, "accuracy": 20.0}
"""Seconds that a trial is taken to last before the first of its task has ended."""

_SILENCE = 30.0
"""Seconds after which a log without a progress bar says how far a training run is."""


@dataclass
class Shown:
    """What a run came to.

    Args:
        records: the record of every trial of the plan.
        present: how many of them were there before.
        inside: seconds of the run that were spent on checking, measuring, training and scoring.
    """

    records: list[Record] = field(default_factory=list)
    present: int = 0
    inside: float = 0.0

    def summary(self, wall: float) -> str:
        """One sentence: what was measured, what failed, how long it took."""
        counts = collections.Counter(record["status"] for record in self.records)
        failed = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items() if status != "ok")
        fresh = len(self.records) - self.present
        made = "predicted" if any(record.get("predicted") for record in self.records) else "measured"
        text = f"{fresh} trials {made}" + (f", {self.present} were there" if self.present else "")
        text += f"; {failed}" if failed else "; all ok"
        text += f". {wall:.0f} s in all"
        return text + (f", {100 * self.inside / wall:.0f} % of it inside operators and training." if fresh else ".")


class _TimeLeft:
    """Seconds left, from what trials of each task took so far."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._left = collections.Counter(trial.task for trial in trials)
        self._taken: dict[str, list[float]] = {"cost": [], "accuracy": []}
        self._begun: float = time.monotonic()
        self._partial = 0.0

    def present(self, trial: Trial) -> None:
        self._left[trial.task] -= 1

    def advance(self, share: float) -> None:
        self._partial = share

    def finish(self, trial: Trial, seconds: float) -> None:
        self._left[trial.task] -= 1
        self._taken[trial.task].append(seconds)
        self._partial = 0.0

    def seconds(self, current: str) -> float:
        total = 0.0
        for task, count in self._left.items():
            taken = self._taken[task]
            each = sum(taken) / len(taken) if taken else _GUESS[task]
            total += each * (count - (self._partial if task == current else 0.0))
        return max(total, 0.0)


def follow(console: Console, trials: Sequence[Trial], events: Iterable[Event], began: float, lanes: int) -> Shown:
    """Consumes the events of a run and shows them.

    Args:
        console: where to.
        trials: the plan.
        events: the run.
        began: monotonic time at which the command began.
        lanes: training runs or predictions at a time.
    """
    shown = Shown()
    left = _TimeLeft(trials)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
        transient=True,
    )
    with progress:
        bar = progress.add_task("starting", total=len(trials), left="")
        last = spoken = time.monotonic()
        for event in events:
            now = time.monotonic()
            if event.kind == "present":
                shown.present += 1
                left.present(event.trial)
            if event.kind in ("present", "finished"):
                shown.records.append(event.data)
            if event.kind == "finished":
                shown.inside += _inside(event.data, lanes)
                left.finish(event.trial, now - last)
                last = now
            if event.kind == "progress":
                left.advance(event.data["done"] / event.data["total"])
            for line in _lines(event, now - began):
                progress.console.print(line, highlight=False)
                spoken = now
            if event.kind == "progress" and not console.is_terminal and now - spoken > _SILENCE:
                done = f"{describe(event.trial)}: iteration {event.data['done']}/{event.data['total']}"
                console.print(f"[dim]{now - began:6.1f} s[/dim]  {done}", highlight=False)
                spoken = now
            _update(progress, bar, event, left, len(shown.records))
    return shown


def _update(progress: Progress, bar: TaskID, event: Event, left: _TimeLeft, done: int) -> None:
    seconds = round(left.seconds(event.trial.task))
    progress.update(
        bar, completed=done, description=describe(event.trial), left=f"about {seconds // 60}:{seconds % 60:02d} left"
    )


def _inside(record: Record, lanes: int) -> float:
    if "train_s" in record:
        return float(record["train_s"] + record["eval_s"]) / lanes
    if record.get("predicted"):
        return float(record.get("prepare_s", 0.0)) / lanes
    samples = sum(record.get("samples_ms", ())) * record.get("calls_per_sample", 1) / 1000
    return float(record.get("prepare_s", 0.0) + samples)


def describe(trial: Trial) -> str:
    """A trial in a few words."""
    if trial.task == "accuracy":
        return f"{trial.label}, {trial.dataset}, seed {trial.seed}"
    shape = f"{trial.batch}x{trial.channels}x{trial.height}x{trial.width}"
    return f"{trial.label}, {trial.level} {trial.mode} {shape} {trial.dtype}"


def _lines(event: Event, elapsed: float) -> Iterable[str]:
    data: dict[str, Any] = event.data
    stamp = f"[dim]{elapsed:6.1f} s[/dim]  {describe(event.trial)}: "
    if event.kind == "numbers":
        megabytes = data["peak_bytes"] / 2**20
        yield f"{stamp}{data['params'] / 1e6:.3g} M params, {data['macs'] / 1e9:.3g} G MACs, peak {megabytes:.4g} MiB"
        for note in data["notes"]:
            yield f"{stamp}[yellow]{note}[/yellow]"
    elif event.kind == "finished" and data["status"] != "ok":
        yield f"{stamp}[red]{data['status'].replace('_', ' ')}[/red]: {data['reason']}"
    elif event.kind == "finished" and "miou" in data:
        yield f"{stamp}mIoU {100 * data['miou']:.1f} ({data['train_s']:.0f} s)"
    elif event.kind == "finished" and "samples_ms" in data:
        samples = sorted(data["samples_ms"])
        yield f"{stamp}{samples[len(samples) // 2]:.3g} ms ({len(samples)} samples)"


def show_plan(console: Console, experiment: Experiment, trials: Sequence[Trial], folder: Path) -> None:
    """Prints the trials that a run would do."""
    for number, trial in enumerate(trials, start=1):
        console.print(f"{number:4d}  {describe(trial)}", highlight=False)
    tasks = collections.Counter(trial.task for trial in trials)
    counts = " and ".join(f"{count} {task}" for task, count in tasks.items())
    console.print(f"{counts} trials on {trials[0].device}, results in {folder}; nothing was run", highlight=False)
    if experiment.accuracy is not None and tasks["accuracy"]:
        console.print(f"recipe: {experiment.accuracy.recipe}", highlight=False)


def list_operators(console: Console) -> None:
    """Prints the registry: name, title, paper, reach, growth."""
    table = Table(box=None, header_style="bold")
    for column in ("name", "title", "kind", "reach", "growth", "source"):
        table.add_column(column)
    for name in operators.names():
        try:
            spec = operators.get(name).spec
        except operators.BrokenOperatorError as error:
            table.add_row(name, "[red]broken[/red]", "", "", "", str(error))
            continue
        source = f"{spec.source.venue} {spec.source.year}, {spec.source.url}"
        table.add_row(name, spec.title, spec.kind, spec.reach, f"N^{spec.growth:g}" if spec.growth else "-", source)
    console.print(table)
