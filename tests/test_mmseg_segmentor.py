"""mmsegmentation's networks and checkpoint files."""

from __future__ import annotations

import copy
import logging

import golden
import pytest
import torch

from attnbench.config import Inference
from attnbench.errors import UsageError
from attnbench.models.mmseg import load_checkpoint, segmentor
from attnbench.models.mmseg.infer import infer_segmentor, written_config

NETWORKS = ["ccnet_r50", "danet_r18_torchvision_stem", "emanet_r18", "ocrnet_r18"]
READABLE = [
    "ann",
    "apc",
    "aspp",
    "cc",
    "da",
    "dm",
    "dnl",
    "ema",
    "enc",
    "fcn",
    "gc",
    "gc_mul",
    "ham",
    "isa",
    "nl_concatenation",
    "psa_bi",
    "psp",
]
NORM = {"norm_cfg": {"type": "BN"}}
LAYOUT = {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4), "contract_dilation": True}
BACKBONE = {"type": "ResNetV1c", "depth": 18, "base_channels": 4, **LAYOUT, **NORM}
HEAD = {"type": "CCHead", "in_channels": 32, "in_index": 3, "channels": 8, "num_classes": 3, **NORM}
CONFIG = {"type": "EncoderDecoder", "backbone": BACKBONE, "decode_head": HEAD}


def load(name):
    return golden.load(f"segmentors/{name}")


def agrees(model, found):
    with torch.no_grad():
        logits = model.eval()(found["inputs"])
    assert logits.shape[-2:] == found["inputs"].shape[-2:]
    torch.testing.assert_close(logits, found["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_mmsegmentations(name):
    found = load(name)
    agrees(segmentor(found["config"], found["state_dict"]), found)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_is_read_without_a_configuration(tmp_path, caplog, name, zipped):
    found = load(name)
    state = {f"module.{key}": tensor for key, tensor in found["state_dict"].items()}
    path = tmp_path / "latest.pth"
    torch.save({"meta": {"mmseg_version": "0.30"}, "state_dict": state}, path, _use_new_zipfile_serialization=zipped)
    agrees(load_checkpoint(path), found)
    assert "strides=(1, 2, 1, 1)" in caplog.text and "published" in caplog.text
    if name == "emanet_r18":
        assert "num_stages=3" in caplog.text
    agrees(load_checkpoint(path, found["config"]), found)


def test_what_leaves_no_trace_is_taken_from_the_files_own_configuration(caplog):
    found = load("emanet_r18")
    text = "model = dict(\n    decode_head=dict(type='EMAHead', num_stages=5, align_corners=True))\nimport os\n"
    caplog.set_level(logging.INFO)
    config = infer_segmentor(found["state_dict"], written_config({"cfg": text}))
    assert config["decode_head"]["num_stages"] == 5 and config["decode_head"]["align_corners"] is True
    assert config["decode_head"]["num_bases"] == 8
    assert "the file's configuration: num_stages=5, align_corners=True" in caplog.text
    other = infer_segmentor(found["state_dict"], {"decode_head": {"type": "CCHead", "num_stages": 5}})
    assert other["decode_head"]["num_stages"] == 3


@pytest.mark.parametrize(
    "text",
    ["model = __import__('os').system('true')", "model = dict(a=open('x'))", "model = dict(", "x = 1", "model = 3"],
)
def test_a_configuration_that_is_not_data_is_passed_over(text):
    assert written_config({"config": text}) == {}
    assert written_config({"cfg": 3}) == {}


def test_inference_reads_what_the_configuration_said():
    """Every head of the inventory: what is inferred builds a module that takes the same keys."""
    for name in READABLE:
        found = golden.load(name)
        network = segmentor(_around(found["config"]))
        state = {f"decode_head.{key}": tensor for key, tensor in found["state_dict"].items()}
        backbone = network.backbone.state_dict()
        theirs = {f"backbone.{_theirs(key)}": tensor for key, tensor in backbone.items()}
        inferred = infer_segmentor({**theirs, **state})
        head = inferred["decode_head"]
        assert head["type"] == found["config"]["type"]
        unread = {"num_groups", "in_index", "norm_cfg", "down_factor", "dilations", "ham_kwargs"}
        for key, value in found["config"].items():
            if key not in {*unread, "in_channels", "dropout_ratio"}:
                assert head[key] == (tuple(value) if isinstance(value, list) else value), (name, key)


def _around(head):
    config = copy.deepcopy({**CONFIG, "backbone": {**BACKBONE, "base_channels": 8}})
    assert head["type"]
    config["decode_head"] = {**HEAD, "in_channels": 64}
    return config


def _theirs(name):
    if name.startswith("conv1."):
        return f"stem.{name.removeprefix('conv1.')}"
    return name.replace("bn1.", "stem.7.", 1) if name.startswith("bn1.") else name


def test_left_over_and_missing_keys_are_named():
    found = load("ccnet_r50")
    state = dict(found["state_dict"])
    del state["backbone.layer1.0.conv1.weight"], state["decode_head.cca.gamma.scale"]
    state["decode_head.decoy"] = torch.zeros(1)
    with pytest.raises(UsageError) as caught:
        segmentor(found["config"], state)
    message = str(caught.value)
    assert "1 left over: decode_head.decoy" in message
    assert "2 missing: backbone.layer1.0.conv1.weight, decode_head.cca.gamma.scale" in message


def test_the_statistics_of_images_are_no_weights():
    found = load("ccnet_r50")
    agrees(segmentor(found["config"], {**found["state_dict"], "data_preprocessor.mean": torch.zeros(3, 1, 1)}), found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "PointRend"}, "expected one of EncoderDecoder, CascadeEncoderDecoder"),
        ({"neck": {"type": "FPN"}}, "expected no neck"),
        ({"necks": 1}, "unknown key 'necks'"),
        ({"decode_head": None}, "without it"),
        ({"decode_head": [HEAD]}, "expected one head, got list"),
        ({"backbone": {**BACKBONE, "type": "MixVisionTransformer"}}, "expected one of ResNet, ResNetV1c, ResNetV1d"),
        ({"backbone": {**BACKBONE, "depth": 19}}, "expected depth in"),
        ({"backbone": {**BACKBONE, "strides": (1, 2, 2, 2)}}, "expected strides"),
        ({"backbone": {**BACKBONE, "style": "caffe"}}, "expected style 'pytorch'"),
        ({"backbone": {**BACKBONE, "dept": 18}}, "unknown key 'dept'; did you mean 'depth'"),
        ({"backbone": {**BACKBONE, "multi_grid": (1, 2, 4)}}, "expected multi_grid with 2 dilations"),
    ],
)
def test_what_is_not_supported_is_named(change, message):
    with pytest.raises(UsageError, match=message):
        segmentor({**CONFIG, **change})


def test_grids_take_the_place_of_the_stages_dilation():
    network = segmentor({**CONFIG, "backbone": {**BACKBONE, "multi_grid": (1, 3)}})
    assert [block.conv1.dilation[0] for block in network.backbone.layer4] == [1, 3]
    assert tuple(network(torch.zeros(1, 3, 33, 41)).shape) == (1, 3, 33, 41)


def test_pooled_shortcuts_are_resnet_ds():
    network = segmentor({**CONFIG, "backbone": {**BACKBONE, "type": "ResNetV1d"}})
    pool, conv, _ = network.backbone.layer2[0].downsample
    assert (pool.kernel_size, pool.ceil_mode, pool.count_include_pad) == (2, True, False)
    assert conv.stride == (1, 1)
    state = {f"backbone.{_theirs(key)}": value for key, value in network.backbone.state_dict().items()}
    head = {f"decode_head.{key}": value for key, value in _cc_state(network).items()}
    assert infer_segmentor({**state, **head})["backbone"]["type"] == "ResNetV1d"


def _cc_state(network):
    head = network.decode_heads[0].head
    return {"cca.gamma.scale": head.operator.gamma, "convs.0.conv.weight": head.reduction.conv.weight} | {
        "conv_seg.weight": head.classifier.weight
    }


def test_corners_are_aligned_where_the_head_says_so():
    torch.manual_seed(0)
    network = segmentor({**CONFIG, "decode_head": {**HEAD, "align_corners": True}}).eval()
    images = torch.randn(1, 3, 33, 41)
    with torch.no_grad():
        coarse = network.decode_heads[0](network.backbone.stages(images))
        logits = network(images)
    assert torch.allclose(logits[..., 0, 0], coarse[..., 0, 0]) and torch.allclose(
        logits[..., -1, -1], coarse[..., -1, -1]
    )


def test_an_unknown_network_is_named(tmp_path):
    with pytest.raises(UsageError, match="got parts patch_embed"):
        infer_segmentor({"backbone.patch_embed.weight": torch.zeros(1)})
    network = segmentor(CONFIG)
    state = {f"backbone.{_theirs(key)}": value for key, value in network.backbone.state_dict().items()}
    state |= {"decode_head.fpn.weight": torch.zeros(1), "decode_head.conv_seg.weight": torch.zeros(3, 8, 1, 1)}
    with pytest.raises(UsageError, match=r"names of one of ANNHead.*got parts conv_seg, fpn"):
        infer_segmentor(state)


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        (None, Inference()),
        ({"mode": "whole"}, Inference()),
        ({"mode": "slide", "crop_size": [512, 512], "stride": (341, 341)}, Inference("slide", (512, 512), (341, 341))),
    ],
)
def test_test_cfg_says_how_images_are_read(reading, expected):
    found = golden.load("segmentors/ccnet_r50")
    assert segmentor({**found["config"], "test_cfg": reading}).inference == expected


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"mode": "slid"}, "test_cfg: expected mode 'whole' or 'slide', got 'slid'"),
        ({"mode": "slide", "stride": (3, 3)}, "test_cfg, crop_size: expected a height and width .* got None"),
        ({"mode": "slide", "crop_size": (8, 8), "stride": 4}, "test_cfg, stride: expected a height and width .* got 4"),
        ({"mode": "slide", "crop_size": (8, 8), "stride": (9, 8)}, "stride: expected at most the window"),
    ],
)
def test_a_test_cfg_that_does_not_fit_is_an_error(reading, message):
    found = golden.load("segmentors/ccnet_r50")
    with pytest.raises(UsageError, match=message):
        segmentor({**found["config"], "test_cfg": reading})


def test_a_window_is_read_wherever_versions_wrote_it():
    window = {"mode": "slide", "crop_size": [769, 769], "stride": [513, 513]}
    inside = "model = dict(type='EncoderDecoder', test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513)))"
    beside = (
        "model = dict(type='EncoderDecoder')\ntest_cfg = dict(mode='slide', crop_size=(769, 769), stride=(513, 513))"
    )
    for text in (inside, beside):
        assert written_config({"cfg": text}) == {"type": "EncoderDecoder", "test_cfg": window}
    assert written_config({"cfg": "test_cfg = dict(mode='slide')"}) == {}
