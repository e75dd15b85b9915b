"""One training run: data, network, loop with checkpoints, scores, record, exported weights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console

import operators
from attnbench import records, runner
from attnbench.accuracy import Learning, figures, learning, segmentor_of
from attnbench.allocator import keep_freed_memory
from attnbench.atomic import expect_writable
from attnbench.cli.progress import describe
from attnbench.cli.training_lines import Checking, caching, watch_training
from attnbench.config import WHOLE, Accuracy
from attnbench.data import build_dataset
from attnbench.data.base import SegmentationDataset
from attnbench.environment import commit, environment_hash, fingerprint
from attnbench.errors import UsageError
from attnbench.evaluation import evaluate
from attnbench.metrics import Scores
from attnbench.models.exported import Metadata, export_weights
from attnbench.records import PROTOCOL, Record, RecordWriter, Trial
from attnbench.training import Checkpoints, Interruption, Part, Processes, Step, Watch, Watcher, fit
from attnbench.training.distributed import check_processes, share_norms
from attnbench.training.events import Events

_BESIDE = frozenset({"network.backbone_weights", "eval_split", "boundary"})
"""Fields of a trial that change nothing of what is trained, beside how images are read when they are scored."""


@dataclass(frozen=True)
class Options:
    """How a run is done; its result does not depend on it.

    Args:
        output: results folder.
        resume: whether it goes on from its latest checkpoint.
        checkpoint_every: iterations between two checkpoints; none leaves ten of them over the run.
        eval_every: iterations between two scores; none scores at the end alone.
        workers: processes that load data, for each process that trains.
        tensorboard: whether TensorBoard's events are written.
    """

    output: Path
    resume: bool = False
    checkpoint_every: int | None = None
    eval_every: int | None = None
    workers: int = 0
    tensorboard: bool = False


class _Told:
    """Who hears of a run: the screen of the first process, TensorBoard, and the sums for the record."""

    def __init__(self, console: Console, shown: Watcher, events: Events | None) -> None:
        self.watch = Watch()
        self._console, self._shown, self._events = console, shown, events

    def step(self, step: Step) -> None:
        self.watch(step)
        self._shown(step)
        if self._events is not None:
            self._events(step)

    def scores(self, iteration: int, scores: Scores) -> None:
        if self._events is not None:
            self._events.scores(iteration, {"miou": scores.miou, "macc": scores.macc, "aacc": scores.aacc})
        self._console.print(f"iteration {iteration}: mIoU {100 * scores.miou:.2f}", highlight=False)


class TrainingRun:
    """A trial that this process trains, alone or with others.

    Args:
        trial: what to train.
        accuracy: where its data lies.
        options: how.
        processes: this process among those that train together.
        console: where the first process tells what goes on; the others keep silent.
    """

    def __init__(
        self, trial: Trial, accuracy: Accuracy, options: Options, processes: Processes, console: Console
    ) -> None:
        assert trial.recipe and trial.network and trial.dataset and trial.seed is not None
        self.trial, self.options, self.processes, self.console = trial, options, processes, console
        self.recipe, self.network, self.seed, self.dataset = trial.recipe, trial.network, trial.seed, trial.dataset
        self.first = processes.rank == 0
        self.environment = fingerprint(trial.device)
        self.key = environment_hash(self.environment)
        self.source = operators.source_hash(operators.get(trial.operator))
        self.folder = options.output / "runs" / trial.folder_name
        self._accuracy = accuracy

    def present(self) -> Record | None:
        """The record of this run, where an earlier one left it with its weights: a comparison leaves none."""
        identity = records.identity(self.trial, self.key, self.source)
        known = {record["identity"]: record for record in records.load(self.options.output).records}
        found = known.get(identity)
        done = found is not None and found["status"] == "ok" and self.weights.is_file()
        return self.processes.gathered(found if done else None)[0]

    def run(self) -> Record | None:
        """Trains, scores, exports the weights and writes the record, which the first process returns.

        Raises:
            UsageError: if data, recipe, processes, folder or checkpoint do not fit one another, or another process
                trains in the folder.
            KeyboardInterrupt: if it was interrupted; there is a checkpoint where training had begun.
        """
        keep_freed_memory()
        self._expect_fitting()
        train, test = self._datasets()
        checkpoints = self._checkpoints(len(train))
        if self.first:
            expect_writable(self.folder)
            expect_writable(self.options.output / "records")
        with self._alone() if self.first else nullcontext():
            return self._learn(train, test, checkpoints)

    def _expect_fitting(self) -> None:
        """What `fit` would say of recipe and processes, before every file of the data is read."""
        check_processes(self.recipe, self.processes)
        if self.processes.count > 1:
            with torch.device("meta"):
                share_norms(segmentor_of(self.trial, num_classes=2), self.recipe, self.processes)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps a second process out, which would take the first one's unfinished files for those of a dead run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise UsageError(
                f"--output: expected no other process that trains {self.trial.folder_name!r} in "
                f"{str(self.options.output)!r}, got one at work"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _learn(self, train: SegmentationDataset, test: SegmentationDataset, checkpoints: Checkpoints) -> Record | None:
        if self.trial.threads is not None:
            torch.set_num_threads(self.trial.threads)
        model = segmentor_of(self.trial, len(train.classes))
        started, clock = datetime.now(UTC), time.perf_counter()
        with ExitStack() as stack:
            events = None
            if self.options.tensorboard and self.first:
                events = stack.enter_context(Events(self.options.output / "tensorboard", self.trial.folder_name))
            told = _Told(self.console, stack.enter_context(watch_training(self.console, str(self))), events)
            learns = learning(model, self.trial, train, test, caching(self.console))
            learns = learns._replace(test=Part(learns.test, self.processes))
            losses = self._fit(learns, checkpoints, told)
            trained = time.perf_counter()
            scores = self._scores(learns)
            told.scores(self.recipe.iterations, scores)
        if not self.first:
            return None
        fields = {
            **figures(model, losses, scores, train, test),
            "train_s": trained - clock,
            "eval_s": time.perf_counter() - trained,
            **told.watch.fields(),
            **_resumed(told.watch, self.recipe.iterations, checkpoints.sittings),
        }
        export_weights(model, self._metadata(train), self.weights)
        return self._write(fields, started, time.perf_counter() - clock)

    @property
    def weights(self) -> Path:
        """File of the exported weights."""
        return self.folder / "model.safetensors"

    def _datasets(self) -> tuple[SegmentationDataset, SegmentationDataset]:
        # the first process reads every file once; the others wait for its word
        root = runner.check_data(self._accuracy, Checking(self.console)) if self.first else None
        root = self.processes.gathered(root)[0]
        splits = (self._accuracy.train_split, self._accuracy.eval_split)
        train, test = (
            build_dataset(self.dataset, split=split, root=root, image_size=self.trial.image_size) for split in splits
        )
        return train, test

    def _checkpoints(self, train_images: int) -> Checkpoints:
        belongs = {**self.trial.fields(), "source": self.source, "train_images": train_images, "protocol": PROTOCOL}
        # what is trained does not depend on where weights lie, nor on how they are scored
        for name in [key for key in belongs if key in _BESIDE or key.startswith("inference.")]:
            del belongs[name]
        every = self.options.checkpoint_every or max(1, self.recipe.iterations // 10)
        sitting = f"environment {self.key}, commit {commit()}"
        checkpoints = Checkpoints(self.folder / "checkpoints", belongs, every=every, sitting=sitting)
        there = self.processes.gathered(bool(checkpoints.present()))[0]
        if there and not self.options.resume:
            raise UsageError(
                f"--output: expected no checkpoints of {self.trial.folder_name!r} in "
                f"{str(self.options.output)!r} without --resume, got {str(checkpoints.folder)!r}"
            )
        return checkpoints

    def _fit(self, learns: Learning, checkpoints: Checkpoints, told: _Told) -> list[float]:
        every = self.options.eval_every

        def step(step: Step) -> None:
            told.step(step)
            if every is not None and step.iteration % every == 0 and step.iteration < step.iterations:
                told.scores(step.iteration, self._scores(learns))

        with Interruption() as interruption:
            return fit(
                learns.model,
                learns.train,
                self.recipe,
                seed=self.seed,
                device=self.processes.device,
                freeze_backbone=learns.freeze_backbone,
                progress=step,
                num_workers=self.options.workers,
                processes=self.processes,
                checkpoints=checkpoints,
                stop=interruption.asked,
            )

    def _scores(self, learns: Learning) -> Scores:
        """Scores on the whole split, of which each process scores its part."""
        self.processes.share_buffers(learns.model)
        return evaluate(
            learns.model,
            learns.test,
            device=self.processes.device,
            amp=self.recipe.amp,
            inference=self.trial.inference or WHOLE,
            boundary=bool(self.trial.boundary),
            add_up=self.processes.total,
            num_workers=self.options.workers,
        )

    def _metadata(self, train: SegmentationDataset) -> Metadata:
        return Metadata(
            operator=self.trial.operator,
            network=self.network,
            dataset=train.name,
            classes=tuple(train.classes),
            palette=tuple(train.palette),
            mean=train.mean,
            std=train.std,
            implementation=self.trial.implementation,
            settings=self.trial.settings,
            inference=self.trial.inference or WHOLE,
            image_size=self.trial.image_size,
        )

    def _write(self, figures: Mapping[str, Any], started: datetime, wall_s: float) -> Record:
        record = {
            **runner.header(self.trial, self.key, self.source),
            "status": "ok",
            "started": started.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "wall_s": wall_s,
            **figures,
        }
        with RecordWriter(self.options.output) as writer:
            writer.write_environment(self.environment, self.key)
            writer.write(record)
        return record

    def __str__(self) -> str:
        """The run in a few words."""
        processes = f", {self.processes.count} processes" if self.processes.count > 1 else ""
        return f"{describe(self.trial)} on {self.trial.device}{processes}"


def _resumed(watch: Watch, iterations: int, sittings: Sequence[str]) -> dict[str, list[str]]:
    """Notes where the run had several sittings: its seconds are those of the last one, its weights those of all."""
    done = watch.steps
    if done == iterations:
        return {}
    notes = [f"resumed after {iterations - done} of {iterations} iterations; seconds are of the rest"]
    if len(sittings) > 1:
        notes.append(f"trained in sittings of {'; then '.join(sittings)}")
    return {"notes": notes}
