"""Exported weights: what is loaded computes what was saved, and what cannot be loaded is named in one line."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

import operators
from attnbench.cli import evaluate
from attnbench.config import Network
from attnbench.data import build_dataset
from attnbench.errors import UsageError
from attnbench.models.build import build_segmentor
from attnbench.models.exported import Metadata, export_weights, load_segmentor
from attnbench.models.saved import load_any
from attnbench.records import load

NETWORK = Network(slot_channels=16, head_channels=8, backbone_weights="somewhere/resnet.pth")
DATA = build_dataset("context", split="val")
METADATA = Metadata(
    operator="ema",
    network=NETWORK,
    dataset="context",
    classes=DATA.classes,
    palette=DATA.palette,
    mean=DATA.mean,
    std=DATA.std,
    settings='{"num_bases": 4}',
    image_size=(48, 48),
)


@pytest.fixture
def exported(tmp_path):
    network = Network(slot_channels=16, head_channels=8)
    model = build_segmentor("ema", network, len(DATA.classes), settings={"num_bases": 4}, auxiliary_weight=0.4).eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    model.to(memory_format=torch.channels_last)
    path = tmp_path / "runs" / "model.safetensors"
    export_weights(model, METADATA, path)
    return model, path


def test_what_is_loaded_computes_what_was_saved(exported):
    model, path = exported
    loaded, metadata = load_segmentor(path)
    images = torch.randn(2, 3, 33, 41)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
        assert torch.equal(load_any(path).model(images), model(images))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert not loaded.training
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]
    assert metadata.network.backbone_weights is None
    assert (metadata.operator, metadata.classes, metadata.palette) == ("ema", DATA.classes, DATA.palette)
    assert (metadata.mean, metadata.std, metadata.image_size) == (DATA.mean, DATA.std, (48, 48))


@pytest.mark.parametrize("name", operators.names())
def test_every_operator_comes_back(name, tmp_path):
    network = Network(slot_channels=64, head_channels=8)
    model = build_segmentor(name, network, len(DATA.classes))
    export_weights(model, Metadata(operator=name, network=network, classes=DATA.classes), tmp_path / "x.safetensors")
    loaded, _ = load_segmentor(tmp_path / "x.safetensors")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_evaluate_takes_exported_weights(exported, tmp_path):
    _, path = exported
    arguments = [
        "--checkpoint",
        str(path),
        "--dataset",
        "context",
        "--device",
        "cpu",
        "--seconds",
        "0.01",
        "--image-size",
        "native",
    ]
    assert evaluate.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert {record["task"] for record in load(tmp_path / "out").records} == {"accuracy", "cost"}


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_file_cut_short_is_named(exported, kept):
    _, path = exported
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UsageError, match=r"model\.safetensors': expected a whole safetensors file"):
        load_segmentor(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "expected a file of train.py"),
        ({"attnbench": "{"}, "expected a file of train.py"),
        ({"attnbench": '{"operator": "ema"}'}, "expected a file of train.py"),
        ({"attnbench": json.dumps({"operator": "emma", "network": {}, "classes": ["a", "b"]})}, "unknown operator"),
        ({"attnbench": json.dumps({"operator": "ema", "network": {}, "classes": ["a", "b"]})}, "its own description"),
        (
            {"attnbench": json.dumps({"operator": "ema", "network": {"stemm": ""}, "classes": []})},
            "unknown key 'stemm'",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, metadata, message):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata)
    with pytest.raises(UsageError, match=message):
        load_segmentor(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"expected an existing file, got .*absent\.safetensors"):
        load_segmentor(tmp_path / "absent.safetensors")
