"""Adaptive pyramid context against its equations and mmsegmentation."""

from __future__ import annotations

from functools import partial
from typing import Any

import golden
import oracle_pyramids as oracle
import pytest
import torch
from against_oracle import assert_same, rename, settings_of

from operators import checks
from operators.adaptive_pyramid import AdaptivePyramidContext


def operator(channels: int = 8, **settings: Any) -> AdaptivePyramidContext:
    built = checks.construct(AdaptivePyramidContext, channels, **settings)
    assert isinstance(built, AdaptivePyramidContext)
    return built


@pytest.mark.parametrize("fusion", [True, False])
@pytest.mark.parametrize("size", [(4, 5), (1, 3)])
def test_block_is_the_papers(size: tuple[int, int], fusion: bool) -> None:
    scales = (1, 2, 3)
    expected = partial(oracle.adaptive, scales=scales, fusion=fusion)
    assert_same(operator(pool_scales=scales, fusion=fusion), expected, checks.sample(2, 8, *size))


def test_attention_is_what_a_pixel_reads_of_the_pooled_map() -> None:
    built = operator(pool_scales=(1, 3)).double()
    x, (row, column) = checks.sample(2, 8, 5, 7), (2, 6)
    weights = built.attention(x, (row, column))
    assert weights.shape == (2, 2, 5, 7)
    for index, scale in enumerate(built.scales):
        logits = scale.project(x)[1][:, :, row * 7 + column]
        pooled = torch.nn.functional.adaptive_avg_pool2d(x, scale.scale).flatten(2)
        expected = (torch.sigmoid(logits).unsqueeze(1) * pooled).sum(2)
        torch.testing.assert_close((weights[:, index : index + 1] * x).sum((2, 3)), expected)


def test_training_on_one_image_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        AdaptivePyramidContext(16)(torch.ones(1, 16, 5, 7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool_scales": ()}, r"pool_scales >= 1, got \(\)"),
        ({"pool_scales": (1, 0)}, r"pool_scales >= 1, got \(1, 0\)"),
        ({"width": 0}, "width >= 1, got 0"),
        ({"out_channels": 0}, "out_channels >= 1, got 0"),
        ({"channels": 6}, "channels divisible by 4, or a width, got 6"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"AdaptivePyramidContext: expected {message}"):
        AdaptivePyramidContext(**{"channels": 8, **settings})


@pytest.mark.parametrize("settings", [{"fusion": False}, {"pool_scales": (2, 5), "width": 12}])
def test_closed_form_follows_the_settings(settings: dict[str, Any]) -> None:
    assert checks.run_checks(AdaptivePyramidContext, only=("macs",), settings=settings) == {"macs": None}


def test_head_is_mmsegmentations() -> None:
    head = golden.load("apc")
    state, scales = head["state_dict"], tuple(head["config"]["pool_scales"])
    built = AdaptivePyramidContext(64, pool_scales=scales, **settings_of(head)).eval()
    layers = {
        "pooled_redu_conv": "region",
        "input_redu_conv": "pixel",
        "global_info": "whole",
        "gla": "affinity",
        "residual_conv": "residual",
        "fusion_conv": "fusion",
    }
    names = {
        f"acm_modules.{i}.{theirs}": f"scales.{i}.{ours}" for i in range(len(scales)) for theirs, ours in layers.items()
    }
    built.load_state_dict(rename(state, {"bottleneck": "fuse", **names}))
    with torch.no_grad():
        logits = golden.classify(built(head["inputs"][0]), state)
    torch.testing.assert_close(logits, head["logits"], rtol=0, atol=1e-4)
