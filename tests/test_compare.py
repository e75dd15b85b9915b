"""compare.py from end to end, and what it says to input that does not fit."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from attnbench import planning, records
from attnbench.cli import compare, pictures, report, train
from attnbench.cli.arguments import run_command
from attnbench.config import load_preset, preset_names

SCRIPTS = Path(__file__).parents[1] / "scripts"
FAST = ["--sizes", "6x5", "--channels", "8", "--seconds", "0.02", "--modes", "forward", "--only", "cost"]
TRAINING = ["--only", "accuracy", "--operators", "conv1x1", "--iterations", "1"]


def complaint(capsys, arguments, command=compare):
    """What a command says to `arguments`: one line, with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        run_command(command.PROG, lambda: command.main(arguments))
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert said.startswith(f"{command.PROG}: error: ")
    assert said.count("\n") == 1
    return said


def test_end_to_end(tmp_path):
    """One process from arguments to report, with cost and accuracy, then the report again without measuring."""
    options = ["--operators", "conv3x3,global_context", "--channels", "32", "--sizes", "6x5", "--seconds", "0.02"]
    command = [sys.executable, SCRIPTS / "compare.py", *options, "--iterations", "2", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "6 trials measured; all ok" in done.stdout
    assert "% of it inside operators and training" in done.stdout
    found = records.load(tmp_path)
    assert found.problems == []
    done_trials = {(record["task"], record["operator"], record.get("mode")) for record in found.records}
    assert done_trials == {
        *itertools.product(["cost"], ["conv3x3", "global_context"], ["forward", "training"]),
        *itertools.product(["accuracy"], ["conv3x3", "global_context"], [None]),
    }
    environments = records.load_environments(tmp_path)
    assert {record["environment"] for record in found.records} == set(environments)
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {"comparison.md", "comparison.csv", "comparison.tex", "index.html"}
    assert any(name.endswith(".png") for name in written)
    table = pd.read_csv(tmp_path / "comparison.csv")
    assert {"conv3x3", "global_context"} <= set(table["operator"])
    assert (
        "GC" in (tmp_path / "comparison.md").read_text() or "Global context" in (tmp_path / "comparison.md").read_text()
    )

    before = (tmp_path / "comparison.md").read_text()
    again = subprocess.run(
        [sys.executable, SCRIPTS / "report.py", tmp_path], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "comparison.md").read_text() == before


def test_dry_run_measures_nothing(tmp_path, capsys):
    assert compare.main(["--operators", "ema", "--dry-run", "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "ema, operator forward 1x256x33x33 float32" in said
    assert "ema, context, seed 0" in said
    assert "nothing was run" in said
    assert not (tmp_path / "out").exists()


def test_help_and_the_default_run_name_the_other_presets(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    assert f"accuracy     {load_preset('accuracy').about}" in capsys.readouterr().out
    whole_plan = planning.plan
    monkeypatch.setattr(planning, "plan", lambda experiment: whole_plan(experiment)[:1])
    arguments = ["--sizes", "5", "--channels", "64", "--seconds", "0.01", "--output", str(tmp_path)]
    assert compare.main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name in set(preset_names()) - {"default"}:
        assert f"left to --preset {name}: {load_preset(name).about}" in said


def test_list_names_every_operator(capsys):
    assert compare.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert "non_local" in said
    assert "pyramid_pooling" in said


def test_operator_of_a_third_party(tmp_path):
    """The README's example stands in the same table."""
    readme = (SCRIPTS.parent / "README.md").read_text()
    code = next(block for block in readme.split("```")[1::2] if "class MyAttention" in block).removeprefix("python\n")
    file = tmp_path / "my_attention.py"
    file.write_text(code)
    arguments = [
        "--operator",
        f"{file}:MyAttention",
        "--operators",
        "conv3x3",
        *FAST,
        "--output",
        str(tmp_path / "out"),
    ]
    command = [sys.executable, SCRIPTS / "compare.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    statuses = {record["operator"]: record["status"] for record in records.load(tmp_path / "out").records}
    assert statuses == {"conv3x3": "ok", "my_attention": "ok"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--operators", "non_locl"], "unknown operator 'non_locl'; did you mean 'non_local'?"),
        (["--operatrs", "ema"], "unknown option '--operatrs'; did you mean '--operators'?"),
        (["ema"], "unknown option 'ema'; options start with --"),
        (["--preset", "acuracy"], "unknown preset 'acuracy'; did you mean 'accuracy'?"),
        (["--dataset", "camvit"], "unknown dataset 'camvit'; did you mean 'camvid'?"),
        (["--dataset", "camvid", "--data-root", "nowhere"], "nowhere"),
        (["--sizes", "65x"], "expected HEIGHTxWIDTH such as 65x65, got '65x'"),
        (["--channels", "0"], "expected positive integers such as 1,2,4, got '0'"),
        (["--channels", "100", "--operators", "criss_cross"], "100"),
        (["--dtype", "float3"], "unknown value 'float3'; did you mean 'float32'?"),
        (["--modes", "backward"], "unknown value 'backward'"),
        (["--levels", "operater"], "unknown value 'operater'; did you mean 'operator'?"),
        (["--device", "cuda:17"], "device: expected one of auto, cpu"),
        (["--backbone", "resnet19"], "unknown value 'resnet19'; did you mean 'resnet1"),
        (["--seeds", "none"], "expected a positive integer, got 'none'"),
        (["--operator", "nowhere.py:X"], "expected an existing file, got 'nowhere.py'"),
        (["--backbone-weights", "nowhere.pth"], "expected a file, got 'nowhere.pth'"),
        (["--only", "costs"], "invalid choice: 'costs'"),
    ],
)
def test_input_that_does_not_fit(capsys, monkeypatch, arguments, words):
    monkeypatch.delenv("ATTNBENCH_DATA", raising=False)
    assert words in complaint(capsys, [*arguments, "--output", "unused"])
    assert not Path("unused").exists()


def test_preset_key(tmp_path, capsys):
    preset = tmp_path / "p.toml"
    preset.write_text("[cost]\nchanels = [8]\n")
    assert "unknown key 'chanels'; did you mean 'channels'?" in complaint(capsys, ["--preset", str(preset)])


def test_results_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    said = complaint(capsys, ["--operators", "conv1x1", *FAST, "--output", str(tmp_path / "taken")])
    assert "expected a folder that can be written" in said


def camvid(root, *, broken=None, label=3):
    """A tiny CamVid tree of two images for each split."""
    for split in ("train", "test"):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        names = [f"{split}{number}" for number in range(2)]
        for name in names:
            Image.new("RGB", (32, 24), (90, 90, 90)).save(root / split / f"{name}.png")
            Image.new("L", (32, 24), label).save(root / f"{split}annot" / f"{name}.png")
        (root / f"{split}.txt").write_text("".join(f"{split}/{name}.png {split}annot/{name}.png\n" for name in names))
    if broken is not None:
        (root / "train" / "train1.png").write_bytes(broken)
    return ["--dataset", "camvid", "--data-root", str(root), "--preset", "camvid", "--image-size", "24x32", *TRAINING]


def test_labels_that_need_mending(tmp_path, capsys):
    """What was measured before stays: labels are looked at when a mask is loaded."""
    arguments = [*camvid(tmp_path / "camvid", label=12), "--output", str(tmp_path / "out")]
    assert "expected labels 0..11, got 12" in complaint(capsys, arguments)


def test_unreadable_image_is_found_before_anything_runs(tmp_path, capsys):
    arguments = camvid(tmp_path / "camvid", broken=b"\x89PNG broken")
    assert "train1.png': expected a readable image" in complaint(
        capsys, [*arguments, "--output", str(tmp_path / "out")]
    )
    assert not (tmp_path / "out" / "records").exists()


def test_missing_image_is_found_before_anything_runs(tmp_path, capsys):
    arguments = camvid(tmp_path / "camvid")
    (tmp_path / "camvid" / "train" / "train0.png").unlink()
    assert "train0.png" in complaint(capsys, [*arguments, "--output", str(tmp_path / "out")])


def test_weights_of_another_shape(tmp_path, capsys):
    weights = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(1, 2, 3)}, weights)
    arguments = [*camvid(tmp_path / "camvid"), "--backbone-weights", str(weights), "--output", str(tmp_path / "out")]
    assert "conv1.weight" in complaint(capsys, arguments)


def test_report_of_a_folder_without_records(tmp_path, capsys):
    assert "expected a folder that holds records/" in complaint(capsys, [str(tmp_path)], report)


def test_report_into_a_document_without_markers(tmp_path, capsys):
    (tmp_path / "records").mkdir()
    document = tmp_path / "page.md"
    document.write_text("no markers")
    said = complaint(capsys, [str(tmp_path), "--document", str(document)], report)
    assert "<!-- results:begin -->" in said


def test_truncated_record_is_reported_and_nothing_is_lost(tmp_path, capsys):
    arguments = ["--operators", "conv1x1,conv3x3", *FAST, "--output", str(tmp_path)]
    assert compare.main(arguments) == 0
    (file,) = (tmp_path / "records").iterdir()
    whole = file.read_text().splitlines()
    file.write_text(whole[0] + "\n" + whole[1][:50])
    capsys.readouterr()
    assert compare.main(arguments) == 0
    said = capsys.readouterr().out
    assert "line 2: set aside: torn or not JSON" in said
    assert "1 trials measured, 1 were there" in said
    kept = [json.loads(line)["identity"] for line in whole]
    assert {record["identity"] for record in records.load(tmp_path).records} == set(kept)


def test_layout_and_compilation_are_settings_of_their_own(tmp_path):
    arguments = ["--operators", "ema", "--only", "cost", "--sizes", "5", "--channels", "64", "--seconds", "0.01"]
    arguments += ["--modes", "forward", "--batch", "2", "--output", str(tmp_path)]
    assert compare.main(arguments) == 0
    assert compare.main([*arguments, "--channels-last"]) == 0
    found = records.load(tmp_path).records
    assert [record.get("channels_last") for record in found] == [None, True]
    assert len({record["identity"] for record in found}) == 2
    text = (tmp_path / "comparison.md").read_text()
    assert "batch 2, channels last, float32" in text
    assert "Images/s fwd" in text


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler (g++) on CPU")
def test_compiled_latency_stands_beside_eager_counts(tmp_path):
    arguments = ["--operators", "conv1x1", "--only", "cost", "--sizes", "5", "--channels", "64", "--seconds", "0.01"]
    assert compare.main([*arguments, "--modes", "forward", "--compile", "--output", str(tmp_path)]) == 0
    (record,) = records.load(tmp_path).records
    assert record["status"] == "ok"
    assert record["compiled"] is True
    assert record["macs"] == 25 * 64 * 64
    assert any("torch.compile" in note for note in record["notes"])


@pytest.mark.parametrize("command", [compare, train, pictures])
def test_precision_and_length_of_the_training_are_options(command):
    operator = ["--operator" if command is train else "--operators", "conv1x1"]
    parsed = command._parser().parse([*operator, "--preset", "camvid", "--amp", "off", "--iterations", "7"])
    found = command._experiment(parsed, 1)[0] if command is train else command._experiment(parsed)
    assert (found.accuracy.recipe.amp, found.accuracy.recipe.iterations) == ("off", 7)
    assert found.accuracy.recipe.optimizer == "adamw"
