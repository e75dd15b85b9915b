"""A network of `train.py` is scored, shown and asked as it was trained: its size, colours, classes and operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnbench import pictures as drawing
from attnbench import records
from attnbench.cli import evaluate, pictures, predict, train
from attnbench.cli.arguments import run_command
from attnbench.config import Network
from attnbench.data import build_dataset
from attnbench.errors import UsageError
from attnbench.evaluation.as_trained import as_trained
from attnbench.models.build import build_segmentor
from attnbench.models.exported import Metadata, export_weights
from attnbench.models.saved import load_any, save_checkpoint

OPERATOR = f"{Path(__file__).parent / 'sound_operator.py'}:Sound"
COLOURS = "mean = [0.2, 0.5, 0.6]\nstd = [0.1, 0.2, 0.3]\n"
SIZE = (20, 28)


def describe(home, colours="", classes=("soil", "plant", "path")):
    splits = "".join(f'[splits.{name}]\nimages = "photos"\nmasks = "labels"\n' for name in ("train", "val"))
    (home / "dataset.toml").write_text(f'name = "garden"\nclasses = {list(classes)}\n{colours}{splits}')


@pytest.fixture(scope="module")
def garden(tmp_path_factory):
    """Four images whose classes are bands of the sum of their colours, so that a few steps learn something."""
    home = tmp_path_factory.mktemp("garden")
    for folder in ("photos", "labels"):
        (home / folder).mkdir()
    for index in range(4):
        small = np.random.default_rng(index).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        photo = Image.fromarray(small).resize((49, 35), Image.Resampling.BICUBIC)
        labels = np.digitize(np.asarray(photo).mean(-1), [100, 150]).astype(np.uint8)
        photo.save(home / "photos" / f"{index}.png")
        Image.fromarray(labels).save(home / "labels" / f"{index}.png")
    describe(home, COLOURS)
    return home


@pytest.fixture(scope="module")
def trained(garden, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    options = ["--iterations", "12", "--batch-size", "4", "--threads", "1", "--image-size", "20x28"]
    assert train.main([*data(garden), "--operator", OPERATOR, *options, "--output", str(output)]) == 0
    (record,) = records.load(output).records
    return record, output / "runs/sound-garden-seed0/model.safetensors"


def data(garden):
    return ["--dataset", "garden", "--data-root", str(garden), "--device", "cpu"]


def score(garden, path, output, *more):
    arguments = [*data(garden), "--checkpoint", str(path), "--operator", OPERATOR, "--seconds", "0.01"]
    assert evaluate.main([*arguments, "--output", str(output), *more]) == 0
    (record,) = (record for record in records.load(output).records if record["task"] == "accuracy")
    return record


def test_a_score_is_that_of_the_training(trained, garden, tmp_path):
    record, path = trained
    try:
        describe(garden)  # colours as any dataset has them: those that count are in the file
        found = score(garden, path, tmp_path / "as_trained")
        native = score(garden, path, tmp_path / "native", "--image-size", "native")
    finally:
        describe(garden, COLOURS)
    assert found["iou"] == pytest.approx(record["iou"], abs=1e-6)
    assert (found["image_size"], native.get("image_size")) == (list(SIZE), None)
    assert native["iou"] != pytest.approx(record["iou"], abs=1e-3)


def test_pictures_show_it_as_it_was_trained(trained, garden, tmp_path, monkeypatch):
    record, path = trained
    networks, kept = [], drawing.score_saved
    monkeypatch.setattr(drawing, "score_saved", lambda *given: networks.append(kept(*given)) or networks[-1])
    arguments = [*data(garden), "--checkpoint", str(path), "--operator", OPERATOR, "--only", "predictions"]
    assert pictures.main([*arguments, "--output", str(tmp_path)]) == 0
    assert networks[0].miou == pytest.approx(record["miou"], abs=1e-6)
    dataset = build_dataset("garden", split="val", root=garden, image_size=SIZE)
    (scene,) = drawing.scenes_of(dataset, [0])
    shown = drawing.look(networks[0], dataset, scene)
    dataset.mean = (0.9, 0.9, 0.9)
    assert drawing.look(networks[0], dataset, scene).labels.equal(shown.labels)


def test_images_are_predicted_by_an_operator_of_ones_own(trained, garden, tmp_path, capsys):
    _, path = trained
    arguments = [str(garden / "photos/0.png"), "--checkpoint", str(path), "--device", "cpu", "--overwrite"]
    arguments += ["--output", str(tmp_path)]
    assert predict.main([*arguments, "--operator", OPERATOR]) == 0
    assert (tmp_path / "0.mask.png").is_file()
    for command, more in ((predict, arguments), (evaluate, [*data(garden), "--checkpoint", str(path)])):
        with pytest.raises(SystemExit):
            run_command(command.PROG, lambda: command.main([*more, "--operator", "absent.py:Sound"]))  # noqa: B023
        assert "operator file: expected an existing file, got 'absent.py'" in capsys.readouterr().err


def test_classes_of_another_order_are_none_of_its_own(trained, garden, tmp_path):
    _, path = trained
    try:
        describe(garden, COLOURS, classes=("soil", "path", "plant"))
        with pytest.raises(UsageError, match="got 'plant' in place of 'path' as class 1"):
            score(garden, path, tmp_path)
    finally:
        describe(garden, COLOURS)


def test_a_file_that_names_nothing_is_read_as_the_dataset_says(garden, tmp_path):
    network = Network(slot_channels=16, head_channels=8)
    path = tmp_path / "own.pth"
    save_checkpoint(build_segmentor("ema", network, 3), path, operator="ema", network=network)
    dataset = build_dataset("garden", split="val", root=garden)
    assert as_trained(dataset, load_any(path), path) is dataset


def test_pictures_of_networks_of_two_sizes_want_one(tmp_path):
    network, shown = Network(slot_channels=16, head_channels=8), build_dataset("context", split="val")
    arguments = []
    for name, size in (("small", SIZE), ("native", None)):
        path = tmp_path / f"{name}.safetensors"
        described = Metadata("ema", network, "context", shown.classes, shown.palette, image_size=size)
        export_weights(build_segmentor("ema", network, 5), described, path)
        arguments += ["--checkpoint", str(path)]
    with pytest.raises(UsageError, match=r"got 20x28 \(.*\) and that of their files \(.*--image-size HxW takes one"):
        pictures.main([*arguments, "--output", str(tmp_path)])


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_an_operator_that_is_not_registered_is_asked_for(ending, tmp_path):
    network, path = Network(slot_channels=16, head_channels=8), tmp_path / f"own.{ending}"
    model = build_segmentor("conv3x3", network, 5)
    if ending == "pth":
        save_checkpoint(model, path, operator="somebodys", network=network)
    else:
        export_weights(model, Metadata("somebodys", network, "context", tuple("abcde")), path)
    with pytest.raises(UsageError, match=r"unknown operator 'somebodys'.*--operator FILE\.py:CLASS"):
        load_any(path)
