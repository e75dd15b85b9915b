"""Predicted trials: equal to the measured ones over the whole registry, and rows of their own."""

import dataclasses
import json

import pandas as pd
import pytest
import torch
from test_compare import complaint

import operators
from attnbench import planning, records, report, runner
from attnbench.cli import compare
from attnbench.config import Accuracy, Cost, Experiment, Network
from attnbench.errors import UsageError
from attnbench.measuring.cost import count_macs, count_params
from attnbench.measuring.memory import BLOCK, profile_memory
from attnbench.prediction import predict, predicted_memory
from attnbench.records import Trial
from attnbench.workload import Unsupported, build_workload

CPU = torch.device("cpu")
CASES = [
    (name, implementation) for name in operators.names() for implementation in operators.get(name).spec.implementations
]
SEVERAL = ["conv3x3", "non_local", "ema", "hamburger", "shifted_window", "point_wise_spatial", "context_encoding"]
SMALL = Network(backbone="small", slot_channels=64, head_channels=32)
COST = Cost(sizes=((7, 5),), channels=(8,), seconds_per_trial=0.02, min_samples=2, modes=("forward",), predicted=True)
TINY = Experiment(operators=("conv1x1", "conv3x3"), device="cpu", cost=COST, accuracy=None)


def trial(operator="non_local", implementation="reference", **fields):
    wanted = {"level": "operator", "mode": "training", "channels": 64, "height": 9, "width": 7, "batch": 1}
    wanted |= {"dtype": "float32", "num_classes": 5, "network": SMALL, "in_channels": 32, **fields}
    if wanted["level"] not in ("head", "network"):
        wanted["network"] = None
    if wanted["level"] != "head":
        wanted["in_channels"] = None
    return Trial("cost", operator, implementation, "cpu", **wanted)


def without_curve(profile):
    return dataclasses.replace(profile, curve=())


def expect_equal(wanted):
    """Peak, saved and largest to the byte, and the operation that made the largest."""
    try:
        workload = build_workload(wanted)
    except Unsupported as error:
        with pytest.raises(Unsupported, match=str(error)):
            predict(wanted)
        return
    measured = profile_memory(workload.forward, workload.backward, CPU, release=workload.release)
    assert without_curve(predicted_memory(wanted)) == without_curve(measured)
    assert (wanted.mode == "training") == (measured.saved_bytes is not None)


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_every_operator_is_predicted_to_the_byte(name, implementation):
    for mode in ("forward", "training"):
        expect_equal(trial(name, implementation, mode=mode))


@pytest.mark.parametrize("level", ["core", "head", "network"])
@pytest.mark.parametrize("name", SEVERAL)
def test_every_level_is_predicted(name, level):
    size = {"height": 3, "width": 5} if level == "network" else {}
    for mode in ("forward", "training"):
        expect_equal(trial(name, level=level, mode=mode, **size))


@pytest.mark.full
@pytest.mark.parametrize("level", ["core", "head", "network"])
@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_every_operator_is_predicted_at_every_level(name, implementation, level):
    for mode in ("forward", "training"):
        expect_equal(trial(name, implementation, level=level, mode=mode, batch=2, height=5))


@pytest.mark.full
@pytest.mark.parametrize(
    "fields", [{"dtype": "bfloat16"}, {"channels_last": True}, {"batch": 3, "height": 17}], ids=str
)
@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_every_setting_is_predicted(name, implementation, fields):
    if name == "axial_attention" and "channels_last" in fields:
        pytest.xfail("torch lays out a fake map of channels last otherwise than a real one: 2 % more is saved")
    for mode in ("forward", "training"):
        expect_equal(trial(name, implementation, mode=mode, **fields))


@pytest.mark.parametrize("level", ["operator", "head", "network"])
def test_parameters_and_products_are_those_that_are_counted(level):
    wanted = trial(level=level, mode="forward")
    figures, workload = predict(wanted), build_workload(wanted)
    assert figures["macs"] == count_macs(workload.module, workload.inputs).macs
    assert figures["params"] == count_params(workload.module)
    assert figures.get("macs_closed_form") == workload.macs_closed_form


def test_for_a_gpu_tensors_fill_whole_blocks():
    cpu, cuda = predicted_memory(trial()), predicted_memory(dataclasses.replace(trial(), device="cuda"))
    assert cpu.peak_bytes < cuda.peak_bytes < cpu.peak_bytes + BLOCK * len(cpu.curve)
    assert cuda.peak_bytes % BLOCK == cuda.saved_bytes % BLOCK == 0


def test_what_no_machine_holds_takes_seconds():
    figures = predict(trial(channels=512, height=1024, width=2048, mode="forward"))
    assert figures["largest_bytes"] == 4 * (1024 * 2048) ** 2
    assert figures["peak_bytes"] >= 2 * figures["largest_bytes"]


def run(experiment, folder):
    trials = planning.plan(experiment)
    events = runner.run(experiment, trials, folder)
    return {event.trial.label: event for event in events if event.kind in ("finished", "present")}


def test_predicted_runs_record_and_resume(tmp_path):
    first = run(TINY, tmp_path)
    for event in first.values():
        assert event.kind == "finished"
        assert event.data["status"] == "ok", event.data
        assert event.data["predicted"] is True
        assert event.data["largest_by"] == "aten::convolution"
        assert not {"samples_ms", "control_samples_ms", "uncounted", "saved_bytes"} & set(event.data)
    assert {event.kind for event in run(TINY, tmp_path).values()} == {"present"}
    measured = run(dataclasses.replace(TINY, cost=dataclasses.replace(COST, predicted=False)), tmp_path)
    assert {event.kind for event in measured.values()} == {"finished"}
    for label, event in measured.items():
        assert "predicted" not in event.data
        assert event.data["identity"] != first[label].data["identity"]
        for name in ("params", "macs", "peak_bytes", "largest_bytes", "largest_by"):
            assert event.data[name] == first[label].data[name]
    loaded = records.load(tmp_path)
    assert loaded.problems == [] and len(loaded.records) == 4
    written = report.write_report(loaded.records, records.load_environments(tmp_path), tmp_path)
    assert [frame.cost.get("predicted") for frame in written.frames].count(True) == 1
    titles = [line for line in (tmp_path / "comparison.md").read_text().splitlines() if line.startswith("### ")]
    assert sum("predicted" in title for title in titles) == 2
    assert sum("predicted" not in title for title in titles) == 3
    sheet = pd.read_csv(tmp_path / "comparison.csv")
    assert sheet.groupby(sheet["predicted"].fillna(False))["latency_ms_forward"].count().to_dict() == {
        False: 2,
        True: 0,
    }


def test_identities_of_measured_trials_are_what_they_were():
    fields = trial().fields()
    assert "predicted" not in fields
    assert dataclasses.replace(trial(), predicted=True).fields() == {**fields, "predicted": True}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is here")
def test_a_gpu_that_is_absent_can_be_predicted_and_not_measured(tmp_path):
    experiment = dataclasses.replace(TINY, device="cuda")
    assert {event.data["device"] for event in run(experiment, tmp_path).values()} == {"cuda"}
    with pytest.raises(UsageError, match="device: expected one of auto, cpu"):
        planning.plan(dataclasses.replace(experiment, cost=Cost()))


def test_what_cannot_be_built_is_a_row(tmp_path):
    cost = dataclasses.replace(COST, levels=("core",))
    (event,) = run(dataclasses.replace(TINY, operators=("conv1x1",), cost=cost), tmp_path).values()
    assert (event.data["status"], event.data["reason"]) == ("unsupported", "the operator names no core")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accuracy": Accuracy()}, "nothing has to run for, got accuracy"),
        ({"cost": dataclasses.replace(COST, compiled=True)}, "got the latency of torch.compile"),
        ({"device": "tpu"}, "expected one of auto, cpu"),
    ],
)
def test_what_has_to_run_is_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        planning.plan(dataclasses.replace(TINY, **changes))


def test_command_line(tmp_path, capsys):
    options = ["--sizes", "5x7", "--channels", "64", "--batch", "2", "--dtype", "bfloat16", "--modes", "training"]
    options += ["--levels", "operator,core", "--operators", "non_local", "--output", str(tmp_path)]
    assert compare.main(["--predict", *options]) == 0
    assert "4 trials predicted; all ok" in capsys.readouterr().out
    assert compare.main(["--predict", *options]) == 0
    assert "0 trials predicted, 4 were there" in capsys.readouterr().out
    settings = {(record["level"], record["width"], record["dtype"]) for record in records.load(tmp_path).records}
    assert settings == {(level, 7, "bfloat16") for level in ("operator", "core")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seconds", "1"], "got --seconds"),
        (["--compile"], "got --compile"),
        (["--iterations", "5"], "got --iterations"),
        (["--backbone", "small"], "got --backbone"),
        (["--only", "accuracy"], "got --only accuracy"),
    ],
)
def test_options_of_what_would_run_are_refused(capsys, arguments, words):
    said = complaint(capsys, ["--predict", *arguments])
    assert said.startswith("compare.py: error: --predict: expected ") and words in said


def test_predicted_records_hold_no_samples(tmp_path):
    (event,) = run(dataclasses.replace(TINY, operators=("conv1x1",)), tmp_path).values()
    record = json.loads(json.dumps(event.data))
    records.validate(record)
    for name, value in (("samples_ms", [1.0]), ("predicted_peak_bytes", 1), ("task", "accuracy")):
        with pytest.raises(ValueError, match="record"):
            records.validate({**record, name: value})
    with pytest.raises(ValueError, match="record"):
        records.validate({key: value for key, value in record.items() if key != "predicted"})
