"""What a training run tells: to its parent, to a person, to TensorBoard."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attnbench.cli import progress, training_lines
from attnbench.cli.training_lines import Checking, watch_training
from attnbench.errors import UsageError
from attnbench.records import Trial
from attnbench.supervisor import Event
from attnbench.training.events import Events
from attnbench.training.telling import telling
from attnbench.training.watching import Step, Watch, timed

STEP = Step(1, 10, 2.0, 0.1, images=8, waited_s=0.5, step_s=2.0)
TRIALS = [Trial("accuracy", name, "reference", "cpu", dataset="context", seed=3) for name in ("ema", "conv3x3")]


def steps(count=3, **fields):
    return [replace(STEP, iteration=index + 1, loss=2.0 - index, **fields) for index in range(count)]


def watched(count=3):
    watch = Watch()
    for step in steps(count):
        watch(step)
    return watch


def console(**options):
    return Console(file=io.StringIO(), width=160, **options)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(training_lines.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_the_loss_is_smoothed_without_a_bias_to_zero():
    assert watched(1).loss == pytest.approx(2.0)
    weights = [0.95**2, 0.95, 1.0]
    expected = sum(weight * loss for weight, loss in zip(weights, (2.0, 1.0, 0.0), strict=True)) / sum(weights)
    assert watched(3).loss == pytest.approx(expected)


def test_rates_count_every_step():
    watch = watched(2)
    watch(replace(STEP, iteration=3, images=4, waited_s=3.0, step_s=4.0))
    assert watch.images_per_s == pytest.approx(20 / 8)
    assert watch.waiting_share == pytest.approx(4 / 8)
    assert watch.left_s == pytest.approx(7 * 8 / 3)
    assert watch.fields() == {"train_images_per_s": 2.5, "data_wait_share": 0.5}


def test_before_the_first_step_there_is_nothing_to_tell():
    assert Watch().fields() == {}
    with pytest.raises(RuntimeError, match="expected a step before anything is told"):
        Watch().told()


def test_waiting_is_the_time_until_a_batch_is_there(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 10.5, 20.0])
    monkeypatch.setattr("attnbench.training.watching.time.perf_counter", lambda: next(clock))
    assert list(timed("ab")) == [("a", 3.0), ("b", 0.5)]


def test_a_log_says_how_far_a_run_is_every_half_minute(clock):
    told, log = watched().told(), console()
    lines = training_lines.Log(log, clock.now)
    for _ in range(14):
        lines.show("one", "ema, context", told)
        clock.now += 5
    said = log.file.getvalue().splitlines()
    assert len(said) == 1
    rest = "ema, context: 3/10, loss 0.966, lr 0.1, 4 images/s, 25.0 % waiting for data, 0:14 left"
    assert said[0].split("  ", 1)[1].strip().endswith(rest)
    assert " 35.0 s" in said[0]


def test_every_run_of_a_log_has_its_half_minute(clock):
    told, log = watched().told(), console()
    lines = training_lines.Log(log, clock.now)
    for name in ("one", "two"):
        lines.show(name, name, told)
    clock.now += 31
    for name in ("one", "two", "one"):
        lines.show(name, name, told)
    assert [line.partition(" s  ")[2][:3] for line in log.file.getvalue().splitlines()] == ["one", "two"]


def test_a_terminal_has_a_line_for_each_run_that_goes_on():
    with training_lines.live(console(force_terminal=True)) as display:
        lines = training_lines.TrainingLines(display)
        for name in ("one", "two", "one"):
            lines.show(name, name, watched().told())
        assert [(task.description, task.completed, task.total) for task in display.tasks] == [
            ("one", 3, 10),
            ("two", 3, 10),
        ]
        lines.end("one")
        lines.end("never begun")
        assert [task.description for task in display.tasks] == ["two"]
        assert "loss 0.966" in display.tasks[0].fields["note"]


def test_runs_side_by_side_are_shown_and_summed_up():
    screen = console(force_terminal=True)
    figures = {"status": "ok", "miou": 0.5, "train_s": 8.0, "eval_s": 1.0, "train_images_per_s": 4.0}
    events = [Event("begin", trial, {}) for trial in TRIALS]
    events += [Event("progress", trial, watched().told()) for trial in TRIALS]
    events += [
        Event("finished", trial, {**figures, "data_wait_share": share})
        for trial, share in zip(TRIALS, (0.0, 0.02), strict=True)
    ]
    shown = progress.follow(screen, TRIALS, events, progress.time.monotonic(), 2)
    said = screen.file.getvalue()
    assert "conv3x3, context, seed 3: mIoU 50.0 (8 s, 4 images/s, 2.0 % waiting for data)" in said
    assert shown.waiting() == pytest.approx(0.01)
    assert shown.summary(10.0).endswith("1.0 % of training waited for data.")


def test_the_time_left_counts_what_every_lane_has_done(monkeypatch):
    left = progress._TimeLeft(TRIALS * 2)
    left.finish(TRIALS[0], 10.0)
    left.advance(TRIALS[0], 0.5)
    left.advance(TRIALS[1], 0.75)
    assert left.seconds() == pytest.approx(10.0 * (3 - 1.25))


def test_one_run_is_watched_by_its_command():
    screen = console()
    with watch_training(screen, "ema, camvid") as show:
        for step in steps():
            show(step)
    assert screen.file.getvalue().strip() == "ema, camvid: 3 iterations, 4 images/s, 25.0 % waiting for data"


def test_a_check_that_takes_long_says_so(clock):
    screen = console()
    checking = Checking(screen)
    for done in range(1, 5):
        checking("ade20k, train", done, 20210)
        clock.now += 1
    assert screen.file.getvalue().strip().startswith("ade20k, train: 4 of 20210 images and masks checked; once")


def read(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(item.step, item.value) for item in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_events_are_read_back(tmp_path):
    with Events(tmp_path / "runs", TRIALS[0].folder_name) as events:
        for step in steps():
            events(step)
        events.scores(3, {"miou": 0.5})
    assert events.folder.name == "ema-context-seed3"
    found = read(events.folder)
    assert found.pop("scores/miou") == [(3, 0.5)]
    assert found.pop("training/loss") == [(1, 2.0), (2, 1.0), (3, 0.0)]
    assert {tag: values[0][1] for tag, values in found.items()} == pytest.approx(
        {"training/learning_rate": 0.1, "training/images_per_s": 4.0, "training/data_wait_share": 0.25}
    )


def test_messages_pause_but_the_last_step_is_always_told(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("attnbench.training.telling.time.monotonic", lambda: now[0])
    sent = []
    with telling(sent.append, Events(tmp_path, "ema")) as told:
        told.features(1, 7)
        for step in steps(10):
            told.step(step)
            now[0] += 0.2
        told.scores({"miou": 0.5})
    assert sent[0] == {"done": 1, "total": 7}
    assert [message["done"] for message in sent[1:]] == [4, 7, 10]
    found = read(tmp_path / "ema")
    assert [step for step, _ in found["training/loss"]] == list(range(1, 11))
    assert found["scores/miou"] == [(10, 0.5)]


def test_curves_of_two_runs_never_mix(tmp_path):
    names = []
    for _ in range(3):
        with Events(tmp_path, "ema") as events:
            names.append(events.folder.name)
    assert names == ["ema", "ema-2", "ema-3"]


def test_events_into_a_file_are_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--tensorboard: expected a folder that can be written, got '.*file'"):
        Events(tmp_path / "file", "ema")


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"expected the package tensorboard, got none: pip install 'attnbench\["):
        Events(tmp_path, "ema")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "ema-context-seed3"),
        ({"freeze_backbone": True}, "ema-context-frozen-seed3"),
        ({"implementation": "fused"}, "ema-fused-context-seed3"),
    ],
)
def test_names_of_folders(fields, name):
    assert replace(TRIALS[0], **fields).folder_name == name
