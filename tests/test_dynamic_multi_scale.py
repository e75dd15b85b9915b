"""Dynamic multi-scale filters against their equations and mmsegmentation."""

from __future__ import annotations

from functools import partial
from typing import Any

import golden
import oracle_pyramids as oracle
import pytest
import torch
from against_oracle import assert_same, rename, settings_of

from operators import checks
from operators.dynamic_multi_scale import DynamicMultiScale


def operator(channels: int = 8, **settings: Any) -> DynamicMultiScale:
    built = checks.construct(DynamicMultiScale, channels, **settings)
    assert isinstance(built, DynamicMultiScale)
    return built


@pytest.mark.parametrize("fusion", [True, False])
@pytest.mark.parametrize("sizes", [(1, 3), (2, 5), (4,)])
@pytest.mark.parametrize("size", [(4, 5), (1, 3)])
def test_block_is_the_papers(size: tuple[int, int], sizes: tuple[int, ...], fusion: bool) -> None:
    expected = partial(oracle.dynamic, sizes=sizes, fusion=fusion)
    assert_same(operator(filter_sizes=sizes, fusion=fusion), expected, checks.sample(2, 8, *size))


@pytest.mark.parametrize("sizes", [(1, 3, 5, 7), (2, 4)])
@pytest.mark.parametrize("position", [(0, 0), (2, 6), (4, 3)])
def test_attention_is_what_the_filters_read(position: tuple[int, int], sizes: tuple[int, ...]) -> None:
    built = operator(filter_sizes=sizes).double()
    x = checks.sample(2, 8, 5, 7)
    weights = built.attention(x, position).chunk(len(sizes), 1)
    row, column = position
    for size, weight in zip(built.sizes, weights, strict=True):
        features = size.reduce(x)
        expected = built.core.convolve(features, size.filters(x))[:, :, row, column]
        torch.testing.assert_close((weight * features).sum((2, 3)), expected)


def test_each_image_has_filters_of_its_own() -> None:
    built = operator().double()
    x = checks.sample(2, 8, 5, 7)
    brighter = torch.cat((x[:1], x[1:] + 1))
    torch.testing.assert_close(built(brighter)[0], built(x)[0])
    first, second = built.sizes[1].filters(x)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filter_sizes": ()}, r"filter_sizes >= 1, got \(\)"),
        ({"filter_sizes": (3, 0)}, r"filter_sizes >= 1, got \(3, 0\)"),
        ({"width": 0}, "width >= 1, got 0"),
        ({"out_channels": 0}, "out_channels >= 1, got 0"),
        ({"channels": 6}, "channels divisible by 4, or a width, got 6"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"DynamicMultiScale: expected {message}"):
        DynamicMultiScale(**{"channels": 8, **settings})


@pytest.mark.parametrize("settings", [{"fusion": True}, {"filter_sizes": (2, 3), "width": 12}])
def test_closed_form_follows_the_settings(settings: dict[str, Any]) -> None:
    assert checks.run_checks(DynamicMultiScale, only=("macs",), settings=settings) == {"macs": None}


def test_head_is_mmsegmentations() -> None:
    head = golden.load("dm")
    state, sizes = head["state_dict"], tuple(head["config"]["filter_sizes"])
    built = DynamicMultiScale(64, filter_sizes=sizes, **settings_of(head)).eval()
    layers = {"filter_gen_conv": "generate", "input_redu_conv": "reduce", "norm": "norm"}
    names = {
        f"dcm_modules.{i}.{theirs}": f"sizes.{i}.{ours}" for i in range(len(sizes)) for theirs, ours in layers.items()
    }
    built.load_state_dict(rename(state, {"bottleneck": "fuse", **names}))
    with torch.no_grad():
        logits = golden.classify(built(head["inputs"][0]), state)
    torch.testing.assert_close(logits, head["logits"], rtol=0, atol=1e-4)
