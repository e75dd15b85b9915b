import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attnbench import planning, records, runner
from attnbench.config import Accuracy, Cost, Experiment, Network, Recipe
from attnbench.errors import UsageError

FAILING = Path(__file__).parent / "failing_operators.py"
COST = Cost(sizes=((6, 5),), channels=(8,), seconds_per_trial=0.02, min_samples=2, modes=("forward",), timeout=60)
TINY = Experiment(operators=("conv1x1", "conv3x3"), device="cpu", cost=COST, accuracy=None)


def finished(experiment, folder):
    trials = planning.plan(experiment)
    return {
        event.trial.label: event
        for event in runner.run(experiment, trials, folder)
        if event.kind in ("finished", "present")
    }


def test_plan_unfolds_every_combination():
    cost = Cost(
        levels=("operator", "head"), sizes=((9, 9), (5, 7)), channels=(8, 16), batches=(1, 2), modes=("forward",)
    )
    trials = planning.plan(Experiment(operators=("identity", "conv1x1"), device="cpu", cost=cost, accuracy=None))
    assert len(trials) == len(set(trials)) == 2 * 2 * 2 * 2 * 2
    assert {trial.network.slot_channels for trial in trials if trial.level == "head"} == {8, 16}


def test_plan_covers_implementations_and_seeds():
    trials = planning.plan(Experiment(operators=("non_local",), device="cpu", accuracy=Accuracy(seeds=(0, 1))))
    cost = [trial for trial in trials if trial.task == "cost"]
    assert {trial.implementation for trial in cost} == {"reference", "fused"}
    assert [trial.seed for trial in trials if trial.task == "accuracy"] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"operators": ("non_locl",)}, "unknown operator 'non_locl'; did you mean 'non_local'"),
        ({"device": "cuda:9"}, "device: expected one of auto, cpu"),
        ({"cost": None}, "expected cost or accuracy"),
        ({"operators": ("criss_cross",), "cost": Cost(channels=(12,))}, "12"),
        ({"operator_files": ("nowhere.py:X",)}, "expected an existing file, got 'nowhere.py'"),
        ({"accuracy": Accuracy(network=Network(backbone_weights="nowhere.pth"))}, "expected a file, got 'nowhere.pth'"),
    ],
)
def test_plan_errors(changes, words):
    with pytest.raises(UsageError) as caught:
        planning.plan(dataclasses.replace(TINY, **changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("amp", "emulated", "warned"), [("bfloat16", True, 1), ("bfloat16", False, 0), ("off", True, 0)]
)
def test_a_precision_that_the_processor_lacks_is_a_warning(monkeypatch, caplog, amp, emulated, warned):
    monkeypatch.setattr(planning, "emulates_bfloat16", lambda: emulated)
    accuracy = Accuracy(recipe=Recipe(amp=amp))
    planning.plan(Experiment(operators=("conv3x3",), device="cpu", cost=None, accuracy=accuracy))
    assert sum("several times slower than in float32; --amp off" in line for line in caplog.messages) == warned


def test_run_measures_records_and_resumes(tmp_path):
    first = finished(TINY, tmp_path)
    assert {event.kind for event in first.values()} == {"finished"}
    for label, event in first.items():
        record = event.data
        assert record["status"] == "ok", record
        assert record["macs"] == record["macs_closed_form"] == {"conv1x1": 64, "conv3x3": 576}[label] * 30
        assert record["params"] == {"conv1x1": 64, "conv3x3": 576}[label] + 16
        assert len(record["samples_ms"]) == len(record["control_samples_ms"]) >= 2
        assert record["peak_bytes"] >= 8 * 30 * 4
    assert first["conv3x3"].data["samples_ms"] == first["conv3x3"].data["control_samples_ms"]
    assert records.load(tmp_path).records == sorted(
        (event.data for event in first.values()), key=lambda item: item["started"]
    )
    again = finished(TINY, tmp_path)
    assert {event.kind for event in again.values()} == {"present"}
    more = finished(dataclasses.replace(TINY, operators=("conv1x1", "conv3x3", "identity")), tmp_path)
    assert {label: event.kind for label, event in more.items()} == {
        "conv1x1": "present",
        "conv3x3": "present",
        "identity": "finished",
    }


def test_records_that_do_not_count_are_told(tmp_path, monkeypatch, caplog):
    finished(TINY, tmp_path)
    assert not caplog.messages
    monkeypatch.setattr(runner.operators, "source_hash", lambda operator: f"{len(operator.__name__):016d}")
    finished(dataclasses.replace(TINY, operators=("conv1x1", "identity")), tmp_path)
    (told,) = caplog.messages
    assert "1 of the 2 trials to run are recorded there as measured with other code, and are measured again" in told
    monkeypatch.setattr(runner, "environment_hash", lambda _: "0" * 16)
    finished(TINY, tmp_path)
    assert "2 of the 2 trials to run are recorded there as measured on another machine or with" in caplog.messages[1]


def test_every_level_is_measured_apart(tmp_path):
    """The core of EMA is its iterations; the levels around it only add; identity has no core to show."""
    network = Network(backbone="small", slot_channels=8, head_channels=8)
    levels = ("core", "operator", "head", "network")
    cost = dataclasses.replace(COST, levels=levels, in_channels=16, num_classes=3, network=network)
    experiment = dataclasses.replace(TINY, operators=("ema", "identity"), cost=cost)
    rows = {}
    for event in runner.run(experiment, planning.plan(experiment), tmp_path):
        if event.kind == "finished":
            rows[event.trial.operator, event.trial.level] = event.data
    assert rows["identity", "core"]["status"] == "unsupported"
    assert rows["identity", "core"]["reason"] == "the operator names no core"
    macs = [rows["ema", level]["macs"] for level in levels]
    assert macs[0] == 7 * 30 * 8 * 64
    assert macs[1] == macs[0] + 30 * 2 * 8 * 8
    assert macs[2] == macs[1] + 30 * (9 * 16 * 8 + 9 * 8 * 8 + 8 * 3)
    assert macs[3] > macs[2]
    assert "macs_closed_form" not in rows["ema", "head"]


def test_torn_record_is_measured_again(tmp_path):
    finished(TINY, tmp_path)
    (file,) = (tmp_path / "records").iterdir()
    file.write_text(file.read_text()[:-30])
    kinds = sorted(event.kind for event in finished(TINY, tmp_path).values())
    assert kinds == ["finished", "present"]
    loaded = records.load(tmp_path)
    assert len(loaded.records) == 2
    assert len(loaded.problems) == 1


def test_failures_are_rows_and_never_the_end(tmp_path):
    files = tuple(
        f"{FAILING}:{name}" for name in ("Crashing", "Killed", "Greedy", "Raising", "LateRaising", "WrongMacs")
    )
    experiment = dataclasses.replace(TINY, operators=("conv1x1",), operator_files=files)
    rows = {
        label: (event.data["status"], event.data.get("reason", ""))
        for label, event in finished(experiment, tmp_path).items()
    }
    assert rows.pop("conv1x1") == ("ok", "")
    assert {label: status for label, (status, _) in rows.items()} == {
        "crashing": "crashed",
        "killed": "crashed",
        "greedy": "out_of_memory",
        "raising": "nonconforming",
        "late_raising": "error",
        "wrong_macs": "nonconforming",
    }
    assert "SIGSEGV" in rows["crashing"][1]
    assert "memory runs out" in rows["killed"][1]
    assert "seventeen" in rows["raising"][1]
    assert "macs" in rows["wrong_macs"][1].lower()


def test_memory_that_runs_out_ends_the_trial_and_the_next_starts_clean(tmp_path):
    files = tuple(f"{FAILING}:{name}" for name in ("Limited", "DeviceFull", "StartsClean", "DeviceLost", "AfterLost"))
    rows = {
        label: (event.data["status"], event.data.get("reason", ""))
        for label, event in finished(
            dataclasses.replace(TINY, operators=("conv1x1",), operator_files=files), tmp_path
        ).items()
    }
    assert {label: status for label, (status, _) in rows.items()} == {
        "conv1x1": "ok",
        "limited": "out_of_memory",
        "device_full": "out_of_memory",
        "starts_clean": "ok",
        "device_lost": "error",
        "after_lost": "ok",
    }, rows
    assert "allocate" in rows["limited"][1]
    assert rows["device_full"][1].startswith("CUDA out of memory")


def test_hang_is_a_row(tmp_path):
    cost = dataclasses.replace(COST, timeout=10.0)
    experiment = dataclasses.replace(TINY, operators=("conv1x1",), operator_files=(f"{FAILING}:Hanging",), cost=cost)
    rows = finished(experiment, tmp_path)
    assert rows["hanging"].data["status"] == "timeout"
    assert rows["hanging"].data["reason"] == "no sign of life for 10 s"
    assert rows["conv1x1"].data["status"] == "ok"


def test_accuracy_trial(tmp_path):
    recipe = Recipe(iterations=2, batch_size=2, optimizer="adamw", learning_rate=1e-3)
    experiment = Experiment(operators=("conv1x1",), device="cpu", cost=None, accuracy=Accuracy(recipe=recipe))
    record = finished(experiment, tmp_path)["conv1x1"].data
    assert record["status"] == "ok", record
    assert len(record["loss"]) == 2
    assert len(record["iou"]) == len(record["classes"])
    assert 0 < record["local_ceiling"] < 1
    assert record["recipe.iterations"] == 2
    again = finished(experiment, tmp_path / "again")["conv1x1"].data
    assert again["loss"] == record["loss"]
    assert again["miou"] == record["miou"]


def _hear_interrupts():
    """A shell lets its background jobs ignore Ctrl-C, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_interrupted_run_keeps_what_was_measured(tmp_path, number):
    options = [
        "--operators",
        "conv1x1,conv3x3,identity",
        "--only",
        "cost",
        "--sizes",
        "6x5",
        "--channels",
        "8",
        "--seconds",
        "0.05",
    ]
    endless = ["--operator", f"{FAILING}:Hanging", "--output", str(tmp_path)]
    command = [sys.executable, str(FAILING.parents[1] / "scripts" / "compare.py"), *options]
    process = subprocess.Popen(
        [*command, *endless], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_hear_interrupts
    )
    deadline = time.monotonic() + 120
    while (
        "hanging" not in (line := process.stdout.readline()) and time.monotonic() < deadline and "conv3x3" not in line
    ):
        continue
    time.sleep(1)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; what was measured is kept" in complaint
    assert "Traceback" not in complaint
    done = subprocess.run([*command, "--output", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {record["operator"] for record in records.load(tmp_path).records} >= {"conv1x1", "conv3x3", "identity"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="expected a folder that can be written"):
        finished(TINY, tmp_path)
