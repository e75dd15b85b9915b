"""Whole runs of cheap trials in processes of their own, for tests of what becomes of runs that are killed or meet."""

import json
import multiprocessing

import torch

from attnbench import environment, processes, records, runner, worker
from attnbench.config import Cost, Experiment

FORK = multiprocessing.get_context("fork")
MEASURED = ("started", "wall_s", "samples_ms", "control_samples_ms", "calls_per_sample", "prepare_s")
OPERATORS = ("identity", "conv1x1", "conv3x3")


def cheap(count, operators=OPERATORS):
    """An experiment of `count` blocks of a few milliseconds each."""
    sizes = tuple((4, 4 + number) for number in range(count))
    cost = Cost(sizes=sizes, channels=(8,), modes=("forward",), seconds_per_trial=0.002, min_samples=1, timeout=60)
    return Experiment(operators=operators, device="cpu", cost=cost, accuracy=None)


def warm(monkeypatch):
    """Workers are forked from this process, which has imported and checked everything: a run starts at once."""
    torch.set_num_threads(1)
    monkeypatch.setattr(processes, "context", lambda: FORK)
    environment.commit()
    for name in OPERATORS:
        worker._check(name)


def start(experiment, trials, folder):
    """A process that runs `trials` into `folder`."""
    process = FORK.Process(target=_run, args=(experiment, trials, folder))
    process.start()
    return process


def _run(experiment, trials, folder):
    for _ in runner.run(experiment, trials, folder):
        pass


def table(folder):
    """All that is deterministic of the records of `folder`."""
    loaded = records.load(folder)
    rows = [{key: value for key, value in record.items() if key not in MEASURED} for record in loaded.records]
    return sorted(rows, key=lambda row: row["identity"])


def complete_lines(folder):
    """Every whole line under `folder`, by the identity of its record; more than one where it was measured twice."""
    found = {}
    for path in sorted((folder / "records").glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            found.setdefault(json.loads(line)["identity"], []).append(line)
    return found
