"""`pictures.py`: from the command line to files, on the embedded task and on a folder of one's own."""

from __future__ import annotations

import pytest
import torch
from dataset_trees import write_image, write_mask
from PIL import Image

from attnbench import pictures
from attnbench.accuracy import segmentor_of, train_and_score
from attnbench.cli import pictures as command
from attnbench.cli.arguments import run_command
from attnbench.config import Network
from attnbench.data import build_dataset
from attnbench.errors import UsageError
from attnbench.evaluation import evaluate
from attnbench.models.build import build_segmentor
from attnbench.models.exported import Metadata, export_weights
from attnbench.models.saved import save_checkpoint
from attnbench.planning import plan
from attnbench.training import fit
from attnbench.training.telling import Telling

TOML = """
name = "garden"
classes = ["soil", "plant"]
[splits.train]
images = "photos"
masks = "labels"
[splits.val]
images = "photos"
masks = "labels"
"""


@pytest.fixture
def garden(tmp_path):
    home = tmp_path / "garden"
    for number, name in enumerate("ab"):
        write_image(home / "photos" / f"{name}.jpg", seed=number)
        write_mask(home / "labels" / f"{name}.png", [1, 0, 255])
    (home / "dataset.toml").write_text(TOML)
    return home


def checkpoint(path, name, classes=5):
    network = Network(slot_channels=16, head_channels=8)
    save_checkpoint(build_segmentor(name, network, classes), path, operator=name, network=network)
    return str(path)


def exported(path, name):
    network, shown = Network(slot_channels=16, head_channels=8), build_dataset("context", split="val")
    metadata = Metadata(name, network, "context", shown.classes, shown.palette, shown.mean, shown.std)
    export_weights(build_segmentor(name, network, 5), metadata, path)
    return str(path)


def test_a_folder_of_ones_own(garden, tmp_path, capsys):
    arguments = ["--dataset", "garden", "--data-root", str(garden), "--operators", "conv3x3,ema", "--iterations", "2"]
    arguments += ["--images", "1", "--pixel", "2,3", "--pixel", "5,0", "--dpi", "60", "--bases", "3"]
    assert command.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{kind}-garden.png" for kind in ("predictions", "attention", "bases-ema", "stages-ema")}
    for name in names:
        with Image.open(tmp_path / "out" / name) as opened:
            assert opened.width > 300 and len(opened.convert("RGB").getcolors(opened.width * opened.height)) > 10
    shown = capsys.readouterr().out
    assert "Conv 3x3: mIoU" in shown and "EMA: mIoU" in shown and "Conv 3x3 has no bases to show." in shown


def test_training_is_that_of_a_comparison():
    parsed = command._parser().parse(["--operators", "ema", "--iterations", "2", "--seed", "3"])
    experiment = command._experiment(parsed)
    trials, training, shown = command._plan(experiment, train=True)
    (trial,) = trials
    assert (trial.seed, trial.recipe.iterations, trial.recipe.batch_size) == (3, 2, 8)
    assert trials == plan(experiment)

    found = pictures.train(trial, training, shown)
    torch.manual_seed(3)
    model = build_segmentor("ema", trial.network, 5)
    fit(model, build_dataset("context", split="train"), trial.recipe, seed=3, device="cpu")
    for name, value in model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name]), name
    assert found.miou == evaluate(model, shown, device="cpu").miou
    assert not any(module.training for module in found.model.modules())


def test_a_head_on_cached_features_is_shown_within_its_network(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNBENCH_CACHE", str(tmp_path / "cache"))  # not where another test has left its features
    parsed = command._parser().parse(["--operators", "ema", "--iterations", "2", "--freeze-backbone"])
    trials, training, shown = command._plan(command._experiment(parsed), train=True)
    (trial,) = trials
    assert trial.cache_features

    counted = []
    found = pictures.train(trial, training, shown, features=lambda done, _total: counted.append(done))
    assert counted[-1] == len(shown)
    told = train_and_score(trial, Telling(lambda _message: None), data_root=None, loaders=0)
    assert found.miou == pytest.approx(told["miou"], abs=0.01)
    fresh = segmentor_of(trial, 5).state_dict()
    trained = found.model.state_dict()
    moved = {name for name in fresh if not torch.equal(fresh[name], trained[name])}
    assert moved and not any(name.startswith("backbone.") for name in moved)


def test_networks_of_files(tmp_path, capsys):
    files = [checkpoint(tmp_path / "first.pth", "non_local"), exported(tmp_path / "second.safetensors", "non_local")]
    arguments = [word for file in files for word in ("--checkpoint", file)]
    arguments += ["--only", "attention", "--format", "svg", "--images", "0", "--heads", "--output", str(tmp_path)]
    assert command.main(arguments) == 0
    drawn = (tmp_path / "attention-context.svg").read_text()
    assert "<svg" in drawn and not (tmp_path / "predictions-context.svg").exists()
    assert "Non-local (first) has one head." in capsys.readouterr().out
    with pytest.raises(UsageError, match="--checkpoint: expected networks as their files have them, got --iterations"):
        command.main(["--checkpoint", files[0], "--iterations", "3"])
    with pytest.raises(UsageError, match="expected the 5 classes of dataset 'context', got 3"):
        command.main(["--checkpoint", checkpoint(tmp_path / "other.pth", "ema", classes=3)])


def test_files_of_one_name_are_told_apart_and_keep_what_they_say(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        (tmp_path / f"seed{seed}").mkdir()
        files.append(exported(tmp_path / f"seed{seed}" / "model.safetensors", "ema"))
    arguments = [word for file in (*files, "seed0/model.safetensors") for word in ("--checkpoint", file)]
    seen = []
    monkeypatch.setattr(pictures, "predictions_sheet", lambda *given: seen.extend(given) or "drawn")
    assert command.main([*arguments, "--images", "0", "--format", "svg", "--output", str(tmp_path)]) == 0
    networks, _, _, answers = seen
    assert [network.title for network in networks] == ["EMA (seed0/model)", "EMA (seed1/model)"]
    first, second = (answers[network.title, 0].labels for network in networks)
    assert not torch.equal(first, second)
    for seed in (0, 1):
        assert (tmp_path / f"bases-ema-seed{seed}-model-context.svg").is_file()
        assert (tmp_path / f"stages-ema-seed{seed}-model-context.svg").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pixel", "12"], "expected ROW,COLUMN such as 12,20, got '12'"),
        (["--pixel", "a,3"], "expected ROW,COLUMN such as 12,20, got 'a,3'"),
        (["--pixel", "60,3"], "inside the 48x48 pixels of image 0, got 60,3"),
        (["--images", "0,-1"], "expected a whole number from 0 on, got '-1'"),
        (["--images", "999"], "--images: expected numbers from 0 to 255, got 999"),
        (["--operators", "emma"], "did you mean 'ema'?"),
        (["--format", "jpg"], "invalid choice: 'jpg'"),
        (["--only", "prediction"], "--only: expected some of predictions, attention, bases, got 'prediction'"),
        (["--preset", "defualt"], "did you mean 'default'?"),
        (["--split", "vall"], "did you mean 'val'?"),
        (["--pixle", "1,2"], "unknown option '--pixle'; did you mean '--pixel'?"),
    ],
)
def test_what_is_wrong_is_one_line_before_any_training(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        run_command(command.PROG, lambda: command.main([*arguments, "--output", str(tmp_path / "out")]))
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("pictures.py: error: ") and message in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_costs_no_training(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_train", lambda *_, **__: pytest.fail("it trained"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a folder that can be written"):
        command.main(["--output", str(tmp_path / "file")])
