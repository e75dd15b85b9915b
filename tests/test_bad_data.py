"""Data, weights and checkpoints that are not what they should be: one line that names file and expectation, early."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnbench import planning, runner
from attnbench.cli import compare, evaluate, train, training_run
from attnbench.config import Accuracy, Experiment, Network, Recipe
from attnbench.data import build_dataset
from attnbench.data.files import FileDataset
from attnbench.data.loading import training_batches
from attnbench.errors import UsageError
from attnbench.models.backbone import build_backbone
from attnbench.models.build import build_segmentor
from attnbench.models.saved import save_checkpoint
from attnbench.records import load

SCRIPTS = Path(__file__).parents[1] / "scripts"
SIZE = (24, 32)
RECIPE = Recipe(iterations=3, batch_size=2, crop_size=(16, 16))


@pytest.fixture
def data(tmp_path):
    """A tiny CamVid."""
    root, generator = tmp_path / "camvid", np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for name in ("a.png", "b.png"):
            Image.fromarray(generator.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(root / split / name)
            Image.fromarray(generator.integers(0, 12, SIZE, dtype=np.uint8)).save(root / f"{split}annot" / name)
    return root


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def of_another_size(path):
    Image.fromarray(np.zeros((SIZE[0], SIZE[1] - 1), np.uint8)).save(path)


def out_of_range(path):
    Image.fromarray(np.full(SIZE, 12, np.uint8)).save(path)


def unlabelled(folder):
    for path in folder.iterdir():
        Image.fromarray(np.full(SIZE, 11, np.uint8)).save(path)


FAULTS = {
    "image-no-image": (lambda root: (root / "val/b.png").write_text("none"), "val/b.png': expected a readable image"),
    "image-cut-short": (lambda root: cut(root / "train/b.png"), "image '.*train/b.png': expected a readable image"),
    "mask-cut-short": (lambda root: cut(root / "valannot/b.png"), "mask '.*valannot/b.png': expected a readable image"),
    "mask-missing": (lambda root: (root / "valannot/b.png").unlink(), "mask '.*b.png': expected an existing file"),
    "mask-size": (
        lambda root: of_another_size(root / "valannot/a.png"),
        "mask '.*valannot/a.png': expected the size of its image, 32x24, got 31x24",
    ),
    "label-range": (
        lambda root: out_of_range(root / "valannot/b.png"),
        "mask '.*valannot/b.png': expected labels 0..11, got 12",
    ),
    "empty-split": (lambda root: empty(root / "val"), "camvid split 'val': expected at least one image, got none in "),
    "nothing-labelled": (
        lambda root: unlabelled(root / "valannot"),
        "camvid split 'val': expected at least one labelled pixel, got none in 2 masks",
    ),
    "wrong-folder": (lambda root: root.rename(root.parent / "x"), "camvid: expected a folder with train.txt or train/"),
}


def train_arguments(data, output):
    arguments = ["--operators", "conv1x1", "--dataset", "camvid", "--data-root", str(data), "--output", str(output)]
    return [*arguments, "--iterations", "1", "--device", "cpu"]


def score_arguments(data, checkpoint, output):
    arguments = ["--checkpoint", str(checkpoint), "--dataset", "camvid", "--data-root", str(data), "--device", "cpu"]
    return [*arguments, "--seconds", "0.01", "--output", str(output)]


def write_checkpoint(path, num_classes=11):
    network = Network(slot_channels=8, head_channels=8)
    save_checkpoint(build_segmentor("conv1x1", network, num_classes), path, operator="conv1x1", network=network)
    return path


@pytest.fixture
def nothing_runs(monkeypatch):
    """A run that comes as far as a worker fails the test: what is wrong is said before."""

    def started(*_):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(runner, "run_lanes", started)
    monkeypatch.setattr("attnbench.processes.warm_up", lambda: None)


@pytest.mark.parametrize(("spoil", "words"), FAULTS.values(), ids=FAULTS)
def test_train_says_what_is_wrong_before_anything_is_trained(data, tmp_path, monkeypatch, spoil, words):
    def trained(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr(training_run, "fit", trained)
    spoil(data)
    arguments = ["--operator", "conv1x1", "--dataset", "camvid", "--data-root", str(data), "--iterations", "1"]
    with pytest.raises(UsageError, match=words) as caught:
        train.main([*arguments, "--device", "cpu", "--output", str(tmp_path / "out")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("spoil", "words"), FAULTS.values(), ids=FAULTS)
def test_compare_says_what_is_wrong_before_anything_runs(data, tmp_path, nothing_runs, spoil, words):
    spoil(data)
    with pytest.raises(UsageError, match=words) as caught:
        compare.main(train_arguments(data, tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not load(tmp_path / "out").records


@pytest.mark.parametrize(("spoil", "words"), FAULTS.values(), ids=FAULTS)
def test_evaluate_says_what_is_wrong_before_anything_runs(data, tmp_path, monkeypatch, spoil, words):
    checkpoint = write_checkpoint(tmp_path / "own.pth")
    monkeypatch.setattr(evaluate, "_score", None)
    if words.startswith("image '.*train"):
        data.joinpath("train").rename(data / "old")
        data.joinpath("val").rename(data / "train")
        data.joinpath("train").rename(data / "val")
        cut(data / "val/b.png")
        words = words.replace("train/b", "val/b")
    else:
        spoil(data)
    with pytest.raises(UsageError, match=words):
        evaluate.main(score_arguments(data, checkpoint, tmp_path / "out"))
    assert not load(tmp_path / "out").records


def weights_of(backbone, path):
    torch.save(build_backbone(Network(backbone=backbone, output_stride=8)).state_dict(), path)
    return path


def test_weights_of_another_backbone_are_an_error_of_the_plan(data, tmp_path, nothing_runs):
    weights = weights_of("resnet18", tmp_path / "r18.pth")
    arguments = [*train_arguments(data, tmp_path / "out"), "--backbone-weights", str(weights), "--backbone"]
    with pytest.raises(UsageError, match=r"backbone weights '.*r18.pth': expected the keys of this ResNet, got "):
        compare.main([*arguments, "resnet34", "--dry-run"])
    assert compare.main([*arguments, "resnet18", "--dry-run"]) == 0


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_weights_cut_short_are_an_error_of_the_plan(data, tmp_path, nothing_runs, share):
    weights = weights_of("resnet18", tmp_path / "r18.pth")
    weights.write_bytes(weights.read_bytes()[: int(share * weights.stat().st_size)])
    arguments = [*train_arguments(data, tmp_path / "out"), "--backbone", "resnet18", "--backbone-weights"]
    with pytest.raises(UsageError, match=r"backbone weights '.*r18.pth': expected a file "):
        compare.main([*arguments, str(weights), "--dry-run"])


def test_checkpoints_that_do_not_fit_are_one_line(data, tmp_path):
    path, output = write_checkpoint(tmp_path / "own.pth"), tmp_path / "out"
    held = torch.load(path, weights_only=True)
    held["state_dict"].pop("decode_head.classifier.weight")
    torch.save(held, path)
    with pytest.raises(UsageError, match=r"own.pth': expected the weights of its own .* 1 missing: decode_head.class"):
        evaluate.main(score_arguments(data, path, output))
    cut(write_checkpoint(path))
    with pytest.raises(UsageError, match=r"checkpoint '.*own.pth': expected a file written by torch.save, got "):
        evaluate.main(score_arguments(data, path, output))
    with pytest.raises(UsageError, match=r"expected the 11 classes of dataset 'camvid', got 5"):
        evaluate.main(score_arguments(data, write_checkpoint(path, 5), output))


def test_a_preset_with_an_unknown_key_is_one_line(tmp_path):
    preset = tmp_path / "own.toml"
    preset.write_text("[accuracy.recipe]\niteration = 5\n")
    with pytest.raises(UsageError, match=r"own.toml', accuracy, recipe: unknown key 'iteration'; did you mean 'iterat"):
        compare.main(["--preset", str(preset)])


@pytest.mark.parametrize("script", ["compare.py", "evaluate.py"])
def test_processes_end_with_one_line(data, tmp_path, script):
    out_of_range(data / "valannot/b.png")
    arguments = train_arguments(data, tmp_path / "out")
    if script == "evaluate.py":
        arguments = score_arguments(data, write_checkpoint(tmp_path / "own.pth"), tmp_path / "out")
    command = [sys.executable, SCRIPTS / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    *warned, error = done.stderr.splitlines()
    assert error.startswith(f"{script}: error: mask '{data}/valannot/b.png': expected labels 0..11, got 12")
    assert all("expected 367 images as published, got 2" in line for line in warned)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_while_training_is_named(data, workers):
    dataset = build_dataset("camvid", split="train", root=data)
    (data / "train/b.png").unlink()
    with pytest.raises(UsageError) as caught:
        list(training_batches(dataset, RECIPE, seed=0, num_workers=workers))
    assert str(caught.value) == f"image '{data}/train/b.png': expected an existing file, got none"
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("the disk is gone"), (OSError, RuntimeError)),
        (MemoryError("no more"), (MemoryError, MemoryError)),
        (UsageError("mend it"), (UsageError, UsageError)),
    ],
)
def test_errors_of_loading_processes_keep_their_kind_and_words(data, monkeypatch, workers, error, expected):
    def fail(*_):
        raise error

    dataset = build_dataset("camvid", split="train", root=data)
    monkeypatch.setattr(FileDataset, "decode", fail)
    with pytest.raises(expected[workers], match=str(error)):
        list(training_batches(dataset, RECIPE, seed=0, num_workers=workers))


def test_a_run_ends_with_one_line_where_a_loading_process_meets_a_broken_file(data, tmp_path, monkeypatch):
    cut(data / "train/b.png")
    monkeypatch.setattr(runner, "check_dataset", lambda *_: None)
    accuracy = Accuracy(dataset="camvid", data_root=str(data), workers=2, recipe=RECIPE)
    experiment = Experiment(operators=("conv1x1",), device="cpu", cost=None, accuracy=accuracy)
    with pytest.raises(UsageError, match=r"image '.*train/b.png': expected a readable image, got "):
        list(runner.run(experiment, planning.plan(experiment), tmp_path / "out"))


@pytest.mark.parametrize("raised", [RuntimeError("Failed to decode image"), Image.DecompressionBombError("too large")])
def test_whatever_a_decoder_raises_names_the_file(data, monkeypatch, raised):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(Image.Image, "convert", fail)
    dataset = build_dataset("camvid", split="train", root=data)
    with pytest.raises(UsageError, match=rf"image '.*train/a.png': expected a readable image, got {raised}"):
        dataset[0]
