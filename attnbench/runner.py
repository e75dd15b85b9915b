"""The way of the data: `run(trials) -> events`, with one record for each trial of a plan.

Blocks of trials go to worker processes, and what comes back is written; a trial whose record is there is not run
again, and a worker that dies, hangs or runs out of memory costs the row of the trial that was in flight.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import operators
from attnbench import records
from attnbench.calibration import calibrate
from attnbench.config import Accuracy, Experiment
from attnbench.data import build_dataset, check_dataset
from attnbench.environment import commit, environment_hash, fingerprint
from attnbench.planning import blocks, cores, jobs
from attnbench.records import PROTOCOL, Record, RecordWriter, Trial, trial_key
from attnbench.supervisor import Event, Limits, run_lanes
from attnbench.worker import WorkerOptions

_LOG = logging.getLogger(__name__)


def run(
    experiment: Experiment,
    trials: Sequence[Trial],
    folder: Path,
    *,
    tensorboard: bool = False,
    checking: Checking | None = None,
) -> Iterator[Event]:
    """Runs what has no record in `folder` yet, and writes a record for every trial that ends.

    Args:
        experiment: what was asked for.
        trials: its plan, or a part of it.
        folder: where records go.
        tensorboard: whether training runs write TensorBoard's events, each in a folder of its own in `tensorboard/`.
        checking: called with the name of a split, the files of it that were checked, and their number.

    Raises:
        UsageError: if the folder cannot be written, or the data needs mending; what was measured is kept.
    """
    if not trials:
        return
    environment = fingerprint("cpu" if trials[0].predicted else trials[0].device)
    key = environment_hash(environment)
    sources = {trial.operator: operators.source_hash(operators.get(trial.operator)) for trial in trials}
    present = {record["identity"]: record for record in records.load(folder).records}
    missing: list[Trial] = []
    for trial in trials:
        record = present.get(records.identity(trial, key, sources[trial.operator]))
        if record is None:
            missing.append(trial)
        else:
            yield Event("present", trial, record)
    if not missing:
        return
    _tell_of_others(missing, list(present.values()), key, folder)
    data_root = check_data(experiment.accuracy, checking)
    conforming: set[str] = set()
    with RecordWriter(folder) as writer:
        writer.write_environment(environment, key)
        _calibrate(experiment, missing, folder, key)
        for block in blocks(missing):
            options = WorkerOptions(
                experiment.operator_files,
                frozenset(conforming),
                data_root,
                block[0].threads,
                loaders=experiment.accuracy.workers if experiment.accuracy and block[0].task == "accuracy" else 0,
                tensorboard=str(folder / "tensorboard") if tensorboard else None,
            )
            for event in run_lanes(block, _limits(block[0], experiment), options):
                if event.kind != "finished":
                    yield event
                    continue
                known = header(event.trial, key, sources[event.trial.operator])
                record = {**known, **event.data}
                writer.write(record)
                if event.trial.task == "cost" and record["status"] == "ok":
                    conforming.add(event.trial.operator)
                yield Event("finished", event.trial, record)


def _tell_of_others(missing: Sequence[Trial], there: Sequence[Record], environment: str, folder: Path) -> None:
    """Says of trials that are about to run whether the folder has records of them that do not count."""
    asked = {trial_key(trial.fields()) for trial in missing}
    others = [record for record in there if trial_key(record) in asked]
    elsewhere = {trial_key(record) for record in others if record["environment"] != environment}
    changed = {trial_key(record) for record in others} - elsewhere
    for keys, how in ((elsewhere, "on another machine or with other software"), (changed, "with other code")):
        if keys:
            _LOG.warning(
                "%s: %d of the %d trials to run are recorded there as measured %s, and are measured again",
                folder,
                len(keys),
                len(missing),
                how,
            )


def _calibrate(experiment: Experiment, missing: Sequence[Trial], folder: Path, environment: str) -> None:
    """Measures the machine's roof, where cost is measured; about as long as one trial for each type and the copy."""
    measured = [trial for trial in missing if trial.task == "cost" and not trial.predicted]
    dtypes = [trial.dtype for trial in measured if trial.dtype]
    if dtypes and experiment.cost is not None:
        calibrate(folder, environment, missing[0].device, dtypes, min(experiment.cost.seconds_per_trial, 1.0))


Checking = Callable[[str, int, int], None]
"""Called with the name of a split, the pairs of files of it that were checked, and their number."""


def check_data(accuracy: Accuracy | None, checking: Checking | None = None) -> str | None:
    """Folder of the dataset; raises a `UsageError` now, before anything has run, if it is not what was expected."""
    if accuracy is None:
        return None
    root = accuracy.data_root
    if accuracy.dataset != "context":
        root = root or os.environ.get("ATTNBENCH_DATA")
        for split in (accuracy.train_split, accuracy.eval_split):
            dataset = build_dataset(accuracy.dataset, split=split, root=root, image_size=accuracy.image_size)
            told = functools.partial(checking, f"{dataset.name}, {split}") if checking else None
            check_dataset(dataset, told)
    return root


def header(trial: Trial, environment: str, source: str) -> Record:
    """What every record of `trial` says, whatever came of it."""
    spec = operators.get(trial.operator).spec
    return {
        **trial.fields(),
        "protocol": PROTOCOL,
        "identity": records.identity(trial, environment, source),
        "title": spec.title,
        "kind": spec.kind,
        "reach": spec.reach,
        "growth": spec.growth,
        "environment": environment,
        "source": source,
        "commit": commit(),
    }


def _limits(trial: Trial, experiment: Experiment) -> Limits:
    if trial.task == "cost":
        assert experiment.cost is not None
        return Limits(experiment.cost.timeout, cores() if trial.predicted else 1, experiment.cost)
    assert experiment.accuracy is not None
    return Limits(timeout=experiment.accuracy.timeout, lanes=jobs(experiment.accuracy, trial.device))
