"""`train.py` from end to end on the embedded task, alone and under torchrun."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from rich.console import Console

from attnbench import planning, records
from attnbench.accuracy import train_and_score
from attnbench.cli import train, training_run
from attnbench.cli.arguments import run_command
from attnbench.config import load_preset, updated
from attnbench.data import build_dataset
from attnbench.errors import UsageError
from attnbench.evaluation import evaluate
from attnbench.models.exported import load_segmentor
from attnbench.report import write_report
from attnbench.training import Processes
from attnbench.training.telling import Telling

SCRIPT = Path(__file__).parents[1] / "scripts" / "train.py"
SMALL = ["--operator", "ema", "--iterations", "4", "--batch-size", "4", "--device", "cpu", "--threads", "1"]


def run(output, *more):
    return train.main([*SMALL, "--output", str(output), *more])


def only_record(folder):
    found = records.load(folder)
    assert found.problems == []
    (record,) = found.records
    return record


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    torch.set_num_threads(1)  # as the run does: threads are part of what it is told apart by
    assert run(folder, "--eval-every", "3", "--checkpoint-every", "2") == 0
    return folder


def test_a_run_leaves_a_record_weights_and_two_checkpoints(finished):
    record = only_record(finished)
    assert (record["task"], record["status"], record["operator"], record["seed"]) == ("accuracy", "ok", "ema", 0)
    assert len(record["loss"]) == 4 and record["recipe.iterations"] == 4
    assert record["eval_images"] == 256 and "processes" not in record and "notes" not in record
    folder = finished / "runs" / "ema-context-seed0"
    assert sorted(path.name[:8] for path in (folder / "checkpoints").iterdir()) == ["00000002", "00000004"]
    model, metadata = load_segmentor(folder / "model.safetensors")
    data = build_dataset("context", split="val")
    assert (metadata.operator, metadata.classes, metadata.palette) == ("ema", data.classes, data.palette)
    assert evaluate(model, data, device="cpu").miou == record["miou"]


def test_the_record_is_the_one_that_compare_would_write(finished):
    recipe = {"iterations": 4, "batch_size": 4}
    changes = {"operators": ["ema"], "cost": None, "device": "cpu", "accuracy": {"recipe": recipe}}
    (trial,) = planning.plan(updated(load_preset("default"), changes, "test"))
    fields = dataclasses.replace(trial, threads=1).fields()
    record = only_record(finished)
    assert {key: record[key] for key in fields} == fields


def test_the_record_stands_in_a_report(finished, tmp_path):
    write_report(records.load(finished).records, records.load_environments(finished), tmp_path)
    assert "EMA" in (tmp_path / "comparison.md").read_text()


def test_behind_a_frozen_backbone_it_trains_on_cached_features_as_compare_does(tmp_path):
    assert run(tmp_path, "--freeze-backbone", "--checkpoint-every", "2") == 0
    record = only_record(tmp_path)
    assert record["freeze_backbone"] is True and record["cache_features"] is True
    recipe = {"iterations": 4, "batch_size": 4}
    frozen = {"recipe": recipe, "freeze_backbone": True, "cache_features": True}
    changes = {"operators": ["ema"], "cost": None, "device": "cpu", "accuracy": frozen}
    (trial,) = planning.plan(updated(load_preset("default"), changes, "test"))
    told = train_and_score(trial, Telling(lambda _message: None), data_root=None, loaders=0)
    assert (told["loss"], told["iou"], told["params"]) == (record["loss"], record["iou"], record["params"])
    model, _ = load_segmentor(tmp_path / "runs" / "ema-context-frozen-seed0" / "model.safetensors")
    on_images = evaluate(model, build_dataset("context", split="val"), device="cpu")
    assert on_images.miou == pytest.approx(record["miou"], abs=0.01)


def test_the_boundary_and_the_way_of_reading_are_those_asked_for(tmp_path):
    assert run(tmp_path, "--boundary", "--slide", "32x32", "--flip") == 0
    record = only_record(tmp_path)
    assert record["boundary"] is True and 0 <= record["boundary_f"] <= 1
    assert (record["inference.mode"], record["inference.flip"]) == ("slide", True)


def test_a_finished_run_is_not_done_again(finished, capsys):
    assert run(finished) == 0
    assert "trained already" in capsys.readouterr().out
    only_record(finished)


@pytest.mark.parametrize("left", ["no weights", "failed"])
def test_a_record_without_weights_is_no_finished_run(finished, tmp_path, capsys, left):
    shutil.copytree(finished / "records", tmp_path / "records")
    shutil.copytree(finished / "environments", tmp_path / "environments")
    if left == "failed":
        (file,) = (tmp_path / "records").iterdir()
        record = json.loads(file.read_text())
        for key in ("miou", "macc", "aacc", "iou", "loss"):
            del record[key]
        file.write_text(json.dumps(record | {"status": "error", "error": "it broke"}) + "\n")
    assert run(tmp_path, "--eval-every", "3", "--checkpoint-every", "2") == 0
    assert "trained already" not in capsys.readouterr().out
    weights = [load_segmentor(folder / "runs/ema-context-seed0/model.safetensors") for folder in (finished, tmp_path)]
    torch.testing.assert_close(*(model.state_dict() for model, _ in weights), rtol=0, atol=0)
    assert run(tmp_path) == 0
    assert "trained already" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_costs_no_training(tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "fit", lambda *_, **__: pytest.fail("it trained"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a folder that can be written"):
        run(tmp_path / "file")


def test_checkpoints_of_an_earlier_run_want_to_be_resumed(finished):
    with pytest.raises(UsageError, match="without --resume"):
        run(finished, "--iterations", "5")
    with pytest.raises(UsageError, match=r"with recipe\.iterations 5, got 4"):
        run(finished, "--iterations", "5", "--resume")


def test_a_finished_run_is_scored_in_another_way_without_training(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    assert run(tmp_path / "copy", "--resume", "--boundary", "--flip") == 0
    first, second = sorted(records.load(tmp_path / "copy").records, key=lambda record: record["started"])
    assert second["loss"] == first["loss"] and "boundary_f" in second and "boundary_f" not in first
    assert second["inference.flip"] and second["identity"] != first["identity"]
    assert second["notes"][0].startswith("resumed after 4 of 4 iterations")


def test_what_does_not_fit_the_processes_is_said_before_the_data_are_read(tmp_path, monkeypatch):
    (trial,) = planning.plan(updated(load_preset("default"), {"operators": ["ema"], "cost": None}, "options"))
    accuracy = load_preset("default").accuracy
    options, console = training_run.Options(output=tmp_path), Console(quiet=True)
    for count, message in ((3, "expected a multiple of the 3 processes"), (2, "where torch has no SyncBatchNorm")):
        processes = Processes(rank=1, count=count)
        run_of_two = training_run.TrainingRun(trial, accuracy, options, processes, console)
        monkeypatch.setattr(run_of_two, "_datasets", lambda: pytest.fail("data were read"))
        with pytest.raises(UsageError, match=message):
            run_of_two.run()


def test_an_interrupted_run_goes_on_to_the_same_weights(finished, tmp_path):
    command = [sys.executable, str(SCRIPT), *SMALL, "--output", str(tmp_path), "--eval-every", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while "iteration 1: mIoU" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate()
    assert process.returncode == 130
    assert "--resume" in rest
    assert records.load(tmp_path).records == []
    assert run(tmp_path, "--resume") == 0
    resumed, whole = only_record(tmp_path), only_record(finished)
    assert (resumed["loss"], resumed["iou"]) == (whole["loss"], whole["iou"])
    assert resumed["notes"][0].startswith("resumed after ") and "of 4 iterations" in resumed["notes"][0]
    weights = [
        load_segmentor(folder / "runs" / "ema-context-seed0" / "model.safetensors")[0].state_dict()
        for folder in (tmp_path, finished)
    ]
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())


def test_two_processes_under_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    arguments = [*SMALL, "--batch-norm", "frozen", "--eval-every", "2", "--output", str(tmp_path)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("iteration 4: mIoU") == 1
    record = only_record(tmp_path)
    assert (record["processes"], record["recipe.batch_norm"], record["eval_images"]) == (2, "frozen", 256)
    model, _ = load_segmentor(tmp_path / "runs" / "ema-context-seed0" / "model.safetensors")
    assert evaluate(model, build_dataset("context", split="val"), device="cpu").iou == tuple(record["iou"])
    assert len(list((tmp_path / "runs" / "ema-context-seed0" / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--operator", "emma"], "unknown operator 'emma'"),
        (["--preset", "camvid", "--freeze-backbone"], "scale_range: cached features are those of whole images"),
        (["--boundary", "--stride", "8"], "--stride: expected --slide beside it"),
        (["--batch-norm", "frozn"], "unknown value 'frozn'; did you mean 'frozen'"),
        (["--accumulate", "3"], "accumulate: expected a divisor of batch_size 4"),
        (["--amp", "float16"], "amp: expected 'off' or 'bfloat16' on device 'cpu'"),
        (["--dataset", "camvid", "--data-root", "/absent"], "camvid"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        run(tmp_path, *arguments)
    assert not (tmp_path / "records").exists()


def test_a_loss_that_is_not_finite_is_one_line(tmp_path, capsys):
    preset = tmp_path / "wild.toml"
    preset.write_text('operators = ["ema"]\ncost = false\n[accuracy.recipe]\noptimizer = "sgd"\nlearning_rate = 1e12\n')
    with pytest.raises(SystemExit) as caught:
        run_command(train.PROG, lambda: run(tmp_path / "out", "--preset", str(preset)))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a finite loss, got " in line and "a lower learning_rate" in line
    assert not (tmp_path / "out" / "records").exists()


@pytest.mark.parametrize(("asked", "expected"), [([], 4), (["--workers", "0"], 0), (["--workers", "2"], 2)])
def test_processes_that_load_are_the_presets(asked, expected):
    parsed = train._parser().parse(["--operator", "ema", "--preset", "voc", *asked])
    assert train._experiment(parsed, 1)[1].workers == expected


def test_an_operator_is_asked_for(capsys):
    with pytest.raises(SystemExit) as caught:
        train.main([])
    assert caught.value.code == 2
    assert "--operator" in capsys.readouterr().err


def test_what_a_network_raises_is_one_line_with_its_place(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        (Path(__file__).parent / "sound_operator.py").read_text().replace("self.conv(x)", "self.conv(x[:, 1:])")
    )
    arguments = ["--operator", f"{tmp_path / 'mine.py'}:Sound", "--output", str(tmp_path / "out"), *SMALL[2:]]
    with pytest.raises(SystemExit) as caught:
        run_command(train.PROG, lambda: train.main(arguments))
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert caught.value.code == 2
    assert "sound, context, seed 0" in line and "got RuntimeError: " in line and line.endswith("(mine.py, line 29)")


def test_a_second_process_is_kept_out_of_the_folder(finished, tmp_path):
    with FileLock(tmp_path / "runs/ema-context-seed0/lock"), pytest.raises(UsageError, match="no other process"):
        run(tmp_path)
    assert run(tmp_path, "--eval-every", "3") == 0
    names = {path.name for path in (tmp_path / "runs/ema-context-seed0").iterdir()}
    assert names - {"lock"} == {"checkpoints", "model.safetensors"}


def test_brackets_in_paths_are_printed_as_they_are(tmp_path, capsys):
    assert run(tmp_path / "a[red]b") == 0
    assert "a[red]b" in "".join(capsys.readouterr().out.split())
