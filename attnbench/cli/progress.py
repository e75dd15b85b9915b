"""What a run shows while it goes on: a line for each first figure, a bar with the time left, and the plan."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

import operators
from attnbench.cli.training_lines import Log, TrainingLines, clock, live, rates
from attnbench.config import Experiment
from attnbench.records import Record, Trial
from attnbench.supervisor import Event

_GUESS = {"cost": 4.0, "accuracy": 20.0}
"""Seconds that a trial is taken to last before the first of its task has ended."""


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

    def waiting(self) -> float | None:
        """Share of the training time of all runs that passed while the next batch was not there, if any trained."""
        trained = [record for record in self.records if "data_wait_share" in record]
        seconds = sum(record["train_s"] for record in trained)
        return sum(record["data_wait_share"] * record["train_s"] for record in trained) / seconds if seconds else None

    def summary(self, wall: float) -> str:
        """One sentence: what was measured, what failed, how long it took."""
        counts = collections.Counter(record["status"] for record in self.records)
        failed = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items() if status != "ok")
        fresh = len(self.records) - self.present
        made = "predicted" if any(record.get("predicted") for record in self.records) else "measured"
        text = f"{fresh} trials {made}" + (f", {self.present} were there" if self.present else "")
        text += f"; {failed}" if failed else "; all ok"
        text += f". {wall:.0f} s in all"
        text += f", {100 * self.inside / wall:.0f} % of it inside operators and training." if fresh else "."
        waiting = self.waiting()
        return text if waiting is None else f"{text} {100 * waiting:.1f} % of training waited for data."


class _TimeLeft:
    """Seconds left, from what trials of each task took so far."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._left = collections.Counter(trial.task for trial in trials)
        self._taken: dict[str, list[float]] = {"cost": [], "accuracy": []}
        self._partial: dict[Trial, float] = {}

    def present(self, trial: Trial) -> None:
        self._left[trial.task] -= 1

    def advance(self, trial: Trial, share: float) -> None:
        self._partial[trial] = share

    def finish(self, trial: Trial, seconds: float) -> None:
        self._left[trial.task] -= 1
        self._taken[trial.task].append(seconds)
        self._partial.pop(trial, None)

    def seconds(self) -> float:
        total = 0.0
        for task, count in self._left.items():
            taken = self._taken[task]
            each = sum(taken) / len(taken) if taken else _GUESS[task]
            total += each * (count - sum(share for trial, share in self._partial.items() if trial.task == task))
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
    progress = live(console)
    runs = TrainingLines(progress) if console.is_terminal else Log(console, began)
    with progress:
        bar = progress.add_task("starting", total=len(trials), note="")
        last = time.monotonic()
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
                runs.end(event.trial)
                last = now
            if event.kind == "progress":
                left.advance(event.trial, event.data["done"] / event.data["total"])
                runs.show(event.trial, describe(event.trial), event.data)
            for line in _lines(event, now - began):
                progress.console.print(line, highlight=False)
            _update(progress, bar, event, left, len(shown.records))
    return shown


def _update(progress: Progress, bar: TaskID, event: Event, left: _TimeLeft, done: int) -> None:
    note = f"about {clock(left.seconds())} left"
    title = "all" if event.trial.task == "accuracy" else describe(event.trial)
    progress.update(bar, completed=done, description=title, note=note)


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
        speed = f", {rates(data)}" if "data_wait_share" in data else ""
        yield f"{stamp}mIoU {100 * data['miou']:.1f} ({data['train_s']:.0f} s{speed})"
    elif event.kind == "finished" and "samples_ms" in data:
        samples = sorted(data["samples_ms"])
        yield f"{stamp}{samples[len(samples) // 2]:.3g} ms ({len(samples)} samples)"


def show_plan(console: Console, experiment: Experiment, trials: Sequence[Trial], folder: Path) -> None:
    """Prints the trials that a run would do."""
    for number, trial in enumerate(trials, start=1):
        console.print(f"{number:4d}  {describe(trial)}", highlight=False)
    tasks = collections.Counter(trial.task for trial in trials)
    counts = " and ".join(f"{count} {task}" for task, count in tasks.items())
    console.print(
        f"{counts} trials on {trials[0].device}, results in {folder}; nothing was run", highlight=False, markup=False
    )
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
