"""`evaluate.py` on a checkpoint of mmsegmentation's and on one of ours."""

from __future__ import annotations

import golden
import numpy as np
import pytest
import torch
from PIL import Image

from attnbench.cli import evaluate
from attnbench.config import Network
from attnbench.errors import UsageError
from attnbench.models.build import build_segmentor
from attnbench.models.mmseg import segmentor
from attnbench.models.saved import load_any, save_checkpoint
from attnbench.records import load

SIZE = (33, 41)


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "camvid"
    generator = np.random.default_rng(0)
    for folder in ("val", "valannot"):
        (root / folder).mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.fromarray(generator.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(root / "val" / name)
        Image.fromarray(generator.integers(0, 11, SIZE, dtype=np.uint8)).save(root / "valannot" / name)
    return root


def run(checkpoint, data, output, *options):
    arguments = ["--checkpoint", str(checkpoint), "--dataset", "camvid", "--data-root", str(data), "--device", "cpu"]
    return evaluate.main([*arguments, "--seconds", "0.01", "--output", str(output), *options])


def expect_records(output, operator, params, features):
    found = load(output)
    assert found.problems == []
    records = {record["task"]: record for record in found.records}
    assert records.keys() == {"accuracy", "cost"}
    for record in records.values():
        assert (record["status"], record["operator"], record["params"]) == ("ok", operator, params)
        assert len(record["weights_hash"]) == 16
    assert records["accuracy"]["eval_images"] == 2
    assert (records["cost"]["height"], records["cost"]["width"]) == features
    assert records["cost"]["macs"] > 0 and records["cost"]["peak_bytes"] > 0 and records["cost"]["samples_ms"]


def test_a_checkpoint_of_ours_is_scored_and_measured(tmp_path, data, capsys):
    network = Network(slot_channels=16, head_channels=8)
    model = build_segmentor("ema", network, 11, settings={"num_bases": 4}).eval()
    path = tmp_path / "own.pth"
    save_checkpoint(model, path, operator="ema", network=network, settings={"num_bases": 4})
    images = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(load_any(path).model(images), model(images))
    assert run(path, data, tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("mIoU", "MACs", "peak memory", "latency"))
    expect_records(tmp_path / "out", "ema", sum(parameter.numel() for parameter in model.parameters()), (9, 11))


def test_a_checkpoint_of_mmsegmentations_is_scored_and_measured(tmp_path, data):
    found = golden.load("segmentors/ccnet_r50")
    state = dict(found["state_dict"])
    for name in ("decode_head.conv_seg", "auxiliary_head.conv_seg"):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(11, 16, 1, 1), torch.randn(11)
    path = tmp_path / "theirs.pth"
    torch.save({"state_dict": state, "meta": {}}, path)
    assert run(path, data, tmp_path / "out") == 0
    params = sum(parameter.numel() for parameter in segmentor(found["config"]).parameters()) + 2 * 6 * 17
    expect_records(tmp_path / "out", "criss_cross", params, (5, 6))


def test_errors_are_one_line(tmp_path, data):
    network = Network(slot_channels=16, head_channels=8)
    path = tmp_path / "own.pth"
    save_checkpoint(build_segmentor("conv3x3", network, 5), path, operator="conv3x3", network=network)
    with pytest.raises(UsageError, match="expected the 11 classes of dataset 'camvid', got 5"):
        run(path, data, tmp_path)
    with pytest.raises(UsageError, match="expected an existing file"):
        run(tmp_path / "absent.pth", data, tmp_path)
    with pytest.raises(UsageError, match="camvid"):
        run(path, tmp_path / "absent", tmp_path)
    for wrong in ([], ["--dataset", "context", "--seconds", "nan"]):
        with pytest.raises(SystemExit) as caught:
            evaluate.main(["--checkpoint", str(path), *wrong])
        assert caught.value.code == 2


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"operator": "ema"}, "expected operator, network and num_classes"),
        ({"operator": "emma", "network": {}, "num_classes": 5}, "unknown operator 'emma'"),
        ({"operator": "ema", "network": {"stemm": "7x7"}, "num_classes": 5}, "unknown key 'stemm'"),
        ({"operator": "ema", "network": {}, "num_classes": 5}, "the weights of its own description"),
    ],
)
def test_a_description_that_does_not_fit_is_named(tmp_path, meta, message):
    path = tmp_path / "own.pth"
    torch.save({"meta": {"attnbench": meta}, "state_dict": {"a": torch.zeros(1)}}, path)
    with pytest.raises(UsageError, match=message):
        load_any(path)


def accuracy_of(output):
    return next(record for record in load(output).records if record["task"] == "accuracy")


def test_windows_scales_mirrors_and_boundaries_are_recorded(tmp_path, data, capsys):
    network = Network(slot_channels=16, head_channels=8)
    path = tmp_path / "own.pth"
    save_checkpoint(build_segmentor("conv3x3", network, 11), path, operator="conv3x3", network=network)
    options = ["--slide", "20x24", "--scales", "0.5,1", "--flip", "--boundary"]
    assert run(path, data, tmp_path / "read", *options) == 0
    assert "boundary F" in capsys.readouterr().out
    assert run(path, data, tmp_path / "whole") == 0
    read, whole = accuracy_of(tmp_path / "read"), accuracy_of(tmp_path / "whole")
    assert {key: value for key, value in read.items() if key.startswith("inference.")} == {
        "inference.mode": "slide",
        "inference.crop_size": [20, 24],
        "inference.stride": [13, 16],
        "inference.scales": [0.5, 1.0],
        "inference.flip": True,
    }
    assert read["boundary"] and len(read["boundary_f_of_class"]) == 11 and 0 <= read["boundary_f"] <= 1
    assert not any(key.startswith(("inference.", "boundary")) for key in whole)
    assert read["identity"] != whole["identity"] and read["iou"] != whole["iou"]


def test_the_window_of_a_checkpoint_of_mmsegmentations_is_followed(tmp_path, data):
    found = golden.load("segmentors/ccnet_r50")
    state = dict(found["state_dict"])
    for name in ("decode_head.conv_seg", "auxiliary_head.conv_seg"):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(11, 16, 1, 1), torch.randn(11)
    path = tmp_path / "theirs.pth"
    text = "model = dict(type='EncoderDecoder', test_cfg=dict(mode='slide', crop_size=(24, 24), stride=(16, 16)))"
    torch.save({"state_dict": state, "meta": {"cfg": text}}, path)
    assert run(path, data, tmp_path / "slide") == 0
    assert run(path, data, tmp_path / "whole", "--whole") == 0
    slide, whole = accuracy_of(tmp_path / "slide"), accuracy_of(tmp_path / "whole")
    assert slide["inference.crop_size"] == [24, 24] and "inference.mode" not in whole
    assert slide["iou"] != whole["iou"]
    cost = {name: next(r for r in load(tmp_path / name).records if r["task"] == "cost") for name in ("slide", "whole")}
    assert cost["slide"]["inference.crop_size"] == [24, 24] and "inference.mode" not in cost["whole"]
    # windows of 24 at rows 0 and 9, columns 0, 16 and 17
    assert cost["slide"]["macs"] > 2 * cost["whole"]["macs"]
    assert "read as scored" in cost["slide"]["notes"][0] and "whole and once" in cost["whole"]["notes"][0]


def test_what_cannot_be_measured_costs_no_score(tmp_path, data, capsys, monkeypatch):
    path = tmp_path / "own.pth"
    network = Network(slot_channels=16, head_channels=8)
    save_checkpoint(build_segmentor("conv3x3", network, 11), path, operator="conv3x3", network=network)

    def full(*_, **__):
        raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("attnbench.measuring.memory.peak_bytes", full)
    assert run(path, data, tmp_path / "out") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "mIoU" in shown and "none: can't allocate memory" in shown
    records = {record["task"]: record for record in load(tmp_path / "out").records}
    assert (records["cost"]["status"], records["accuracy"]["status"]) == ("out_of_memory", "ok")
    monkeypatch.setattr("attnbench.evaluation.evaluate", full)
    with pytest.raises(UsageError, match=r"own.pth'.*--slide HxW takes windows.*got can't allocate memory"):
        run(path, data, tmp_path / "none")

    def broken(*_, **__):
        raise UsageError("image 'a.png': expected a readable image, got half of one")

    monkeypatch.setattr("attnbench.evaluation.evaluate", broken)
    with pytest.raises(UsageError, match=r"^image 'a.png': expected a readable image"):
        run(path, data, tmp_path / "none")
