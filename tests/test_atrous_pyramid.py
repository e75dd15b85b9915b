"""Atrous spatial pyramid pooling, plain and separable, against its equations and mmsegmentation."""

from __future__ import annotations

from functools import partial
from typing import Any

import golden
import oracle_pyramids as oracle
import pytest
import torch
import torch.nn.functional as F
from against_oracle import assert_same, rename, settings_of

from operators import checks
from operators.atrous_pyramid import AtrousSpatialPyramidPooling, SeparableAtrousSpatialPyramidPooling
from operators.layers import conv_norm_relu, separable_conv_norm_relu

OPERATORS = (AtrousSpatialPyramidPooling, SeparableAtrousSpatialPyramidPooling)
BOTH = pytest.mark.parametrize("operator", OPERATORS)


@BOTH
@pytest.mark.parametrize("fuse_kernel", [1, 3])
@pytest.mark.parametrize("size", [(4, 5), (1, 3)])
def test_block_is_the_papers(operator: Any, size: tuple[int, int], fuse_kernel: int) -> None:
    dilations = (1, 2, 3)
    depthwise = operator is SeparableAtrousSpatialPyramidPooling
    built = checks.construct(operator, 8, dilations=dilations, fuse_kernel=fuse_kernel)
    assert built.fuse.conv.kernel_size == (fuse_kernel, fuse_kernel)
    expected = partial(oracle.atrous, dilations=dilations, depthwise=depthwise)
    assert_same(built, expected, checks.sample(2, 8, *size))


@BOTH
def test_training_on_one_image_is_a_value_error(operator: Any) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        operator(16)(torch.ones(1, 16, 5, 7))


@BOTH
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dilations": ()}, r"dilations >= 1, got \(\)"),
        ({"dilations": (1, 0)}, r"dilations >= 1, got \(1, 0\)"),
        ({"fuse_kernel": 5}, "fuse_kernel 1 or 3, got 5"),
        ({"width": 0}, "width >= 1, got 0"),
        ({"out_channels": 0}, "out_channels >= 1, got 0"),
        ({"channels": 6}, "channels divisible by 4, or a width, got 6"),
    ],
)
def test_arguments_out_of_range(operator: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{operator.__name__}: expected {message}"):
        operator(**{"channels": 8, **settings})


@BOTH
@pytest.mark.parametrize("settings", [{"fuse_kernel": 1}, {"dilations": (6, 12), "width": 12}])
def test_closed_form_follows_the_settings(operator: Any, settings: dict[str, Any]) -> None:
    assert checks.run_checks(operator, only=("macs",), settings=settings) == {"macs": None}


def test_separable_branches_cost_less() -> None:
    plain, split = (operator(64, dilations=(6, 12, 18)) for operator in OPERATORS)
    cost = [built.macs(9, 9) - built.fuse.conv.weight.numel() * 81 - 64 * 16 for built in (plain, split)]
    assert cost == [81 * 3 * 9 * 64 * 16, 81 * 3 * 64 * (9 + 16)]


def branches(dilations: tuple[int, ...]) -> dict[str, str]:
    return {"image_pool.1": "image", **{f"aspp_modules.{i}": f"branches.{i}" for i in range(len(dilations))}}


def test_plain_head_is_mmsegmentations() -> None:
    head = golden.load("aspp")
    state, dilations = head["state_dict"], tuple(head["config"]["dilations"])
    built = AtrousSpatialPyramidPooling(64, dilations=dilations, **settings_of(head)).eval()
    built.load_state_dict(rename(state, {"bottleneck": "fuse", **branches(dilations)}))
    with torch.no_grad():
        logits = golden.classify(built(head["inputs"][0]), state)
    torch.testing.assert_close(logits, head["logits"], rtol=0, atol=1e-4)


def test_separable_head_is_mmsegmentations() -> None:
    head = golden.load("sep_aspp")
    state, dilations, (fine, coarse) = head["state_dict"], tuple(head["config"]["dilations"]), head["inputs"]
    built = SeparableAtrousSpatialPyramidPooling(64, dilations=dilations, **settings_of(head))
    built.load_state_dict(rename(state, {"bottleneck": "fuse", **branches(dilations)}))
    detail = conv_norm_relu(16, 8)
    decoder = torch.nn.Sequential(separable_conv_norm_relu(40, 32, 3), separable_conv_norm_relu(32, 32, 3))
    detail.load_state_dict({key[1:]: value for key, value in rename(state, {"c1_bottleneck": ""}).items()})
    decoder.load_state_dict({key[1:]: value for key, value in rename(state, {"sep_bottleneck": ""}).items()})
    with torch.no_grad():
        context = F.interpolate(built.eval()(coarse), fine.shape[-2:], mode="bilinear", align_corners=False)
        y = decoder.eval()(torch.cat((context, detail.eval()(fine)), 1))
        logits = golden.classify(y, state)
    torch.testing.assert_close(logits, head["logits"], rtol=0, atol=1e-4)
