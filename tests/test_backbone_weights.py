from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attnbench.config import Network
from attnbench.errors import UsageError
from attnbench.models.backbone import ResNet, build_backbone, load_weights

ROOT = Path(__file__).parents[1]
WEIGHTS = Path(os.environ.get("ATTNBENCH_DATA", ROOT.parent / "shared" / "data")) / "weights"


def narrow(**settings) -> ResNet:
    return ResNet(18, base_channels=4, **settings)


def fresh_state() -> dict[str, Tensor]:
    torch.manual_seed(7)
    backbone = narrow()
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        if tensor.is_floating_point():
            tensor.data.normal_()
    return backbone.state_dict()


def wrap_plain(state):
    return state


def wrap_nested(state):
    return {"state_dict": state, "epoch": 3}


def wrap_parallel(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


def wrap_segmentor(state):
    inner = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    return {"state_dict": {**inner, "module.decode_head.classifier.weight": torch.zeros(1)}}


def wrap_classifier(state):
    return {**state, "fc.weight": torch.zeros(1000, 32), "fc.bias": torch.zeros(1000)}


def wrap_old(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("wrap", [wrap_plain, wrap_nested, wrap_parallel, wrap_segmentor, wrap_classifier, wrap_old])
def test_load_weights_reads_every_common_form(wrap, tmp_path):
    state = fresh_state()
    torch.save(wrap(state), tmp_path / "weights.pth")
    backbone = narrow()
    load_weights(backbone, tmp_path / "weights.pth")
    assert all(torch.equal(tensor, state[name]) for name, tensor in backbone.state_dict().items())


def test_load_weights_reads_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")
    state = fresh_state()
    safetensors.save_file(state, str(tmp_path / "weights.safetensors"))
    backbone = narrow()
    load_weights(backbone, tmp_path / "weights.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in backbone.state_dict().items())
    (tmp_path / "broken.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(UsageError, match="expected a safetensors file"):
        load_weights(backbone, tmp_path / "broken.safetensors")


def test_safetensors_without_the_package_is_a_usage_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="expected the package safetensors, got none"):
        load_weights(narrow(), tmp_path / "weights.safetensors")


def error_of(stored, tmp_path, backbone: nn.Module) -> str:
    path = tmp_path / "weights.pth"
    if isinstance(stored, bytes):
        path.write_bytes(stored)
    else:
        torch.save(stored, path)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_weights(backbone, path)
    after = backbone.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_load_weights_names_what_does_not_fit(tmp_path):
    told = error_of(fresh_state(), tmp_path, narrow(stem="32-32-64"))
    assert "missing: conv1.0.weight, conv1.1.weight, conv1.1.bias, ...;" in told
    assert "1 unexpected: conv1.weight" in told
    told = error_of(fresh_state(), tmp_path, ResNet(18, base_channels=8))
    assert "layer1.0.conv1.weight (expected (8, 64, 3, 3), got (4, 64, 3, 3))" in told
    told = error_of(ResNet(34, base_channels=4).state_dict(), tmp_path, narrow())
    assert "unexpected: layer1.2.conv1.weight" in told
    assert "missing" not in told


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (b"", "expected a file written by torch.save, got EOFError"),
        (b"PK\x03\x04 torn in the middle", "expected a file written by torch.save, got RuntimeError"),
        (b"plain words", "expected a file with tensors alone, got UnpicklingError"),
        ([torch.zeros(1)], "expected a state dict, got list"),
        ({}, "expected a state dict, got dict"),
        ({"epoch": 3}, "expected tensors by name, got int at 'epoch'"),
    ],
)
def test_load_weights_refuses_what_is_no_state_dict(stored, message, tmp_path):
    assert message in error_of(stored, tmp_path, narrow())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torn_file_is_a_usage_error_wherever_it_is_torn(zipped, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(fresh_state(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10 + 3])
        with pytest.raises(UsageError, match="backbone weights"):
            load_weights(narrow(), path)


def test_load_weights_runs_no_code_of_the_file(tmp_path):
    assert "expected a file with tensors alone" in error_of({"x": Path("x")}, tmp_path, narrow())


@pytest.mark.parametrize("depth", [18, 50])
def test_imagenet_weights_load(depth, tmp_path, monkeypatch):
    packed = WEIGHTS / f"resnet{depth}_pqf.npz"
    if not packed.is_file():
        pytest.skip(f"ImageNet weights of ResNet-{depth} are not here; set ATTNBENCH_DATA")
    monkeypatch.setattr(sys, "argv", ["restore", str(packed), str(tmp_path / "weights.pth")])
    runpy.run_path(str(WEIGHTS / "restore.py"))
    stored = torch.load(tmp_path / "weights.pth", weights_only=True)
    backbone = build_backbone(
        Network(backbone=f"resnet{depth}", output_stride=8, backbone_weights=str(tmp_path / "weights.pth"))
    ).eval()
    own = backbone.state_dict()
    assert set(own) == {name for name in stored if not name.startswith("fc.")}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in own.items())
    with torch.no_grad():
        _, features = backbone(torch.randn(1, 3, 65, 65))
    assert features.isfinite().all()
    assert 0.1 < features.std().item() < 10


def test_a_deep_stem_of_mmsegmentation_loads(tmp_path):
    torch.manual_seed(7)
    source = narrow(stem="32-32-64")
    stem = nn.Sequential(*source.conv1, source.bn1, source.relu).state_dict(prefix="stem.")
    rest = {name: value for name, value in source.state_dict().items() if not name.startswith(("conv1.", "bn1."))}
    path = tmp_path / "v1c.pth"
    torch.save({"state_dict": {**stem, **rest}}, path)
    target = narrow(stem="32-32-64")
    load_weights(target, path)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
