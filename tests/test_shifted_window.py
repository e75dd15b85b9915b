"""Shifted window attention against windows that are cut off at the borders, and what its authors say of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_shifted_window as oracle
import pytest
import torch
from against_oracle import assert_same
from torch import Tensor

from operators import checks
from operators.shifted_window import ShiftedWindow, Windows

IMPLEMENTATIONS = ["reference", "fused"]


def operator(channels: int = 8, **settings: Any) -> ShiftedWindow:
    built = checks.construct(ShiftedWindow, channels, **{"num_heads": 2, "window_size": 3, **settings})
    assert isinstance(built, ShiftedWindow)
    return built.double()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [(6, 6), (5, 7), (2, 4), (1, 1)])
@pytest.mark.parametrize(("num_heads", "window_size"), [(2, 3), (1, 2), (4, 1)])
def test_pair_is_the_papers(num_heads: int, window_size: int, size: tuple[int, int], implementation: str) -> None:
    built = operator(4, num_heads=num_heads, window_size=window_size, implementation=implementation)
    expected = partial(oracle.pair, num_heads=num_heads, window_size=window_size)
    assert_same(built, expected, checks.sample(2, 4, *size))


def test_published_window_has_49_pixels_and_heads_of_32_channels() -> None:
    built = ShiftedWindow(512)
    assert built.regular.position.shape == built.shifted.position.shape == (16, 13, 13)
    assert (built.regular.shift, built.shifted.shift) == (0, 3)
    assert ShiftedWindow(64).regular.num_heads == 2


def test_shift_joins_neighbours_across_the_borders_of_windows() -> None:
    built, x = operator(), checks.sample(1, 8, 9, 9)
    moved = x.clone()
    moved[:, :, 4, 4] += checks.sample(8, seed=2)
    within = (built.regular(moved) - built.regular(x)).abs().amax((0, 1)).gt(1e-12)
    assert within.nonzero().aminmax(dim=0).min.tolist() == [3, 3] and within.sum() == 9
    beyond = (built(moved) - built(x)).abs().amax((0, 1)).gt(1e-12)
    assert beyond.nonzero().aminmax(dim=0).min.tolist() == [1, 1]
    assert beyond.nonzero().aminmax(dim=0).max.tolist() == [6, 6]


def test_opposite_borders_stay_apart() -> None:
    built, x = operator(), checks.sample(1, 8, 6, 6)
    moved = x.clone()
    moved[:, :, 5] += 1
    change = (built.shifted(moved) - built.shifted(x)).abs().amax((0, 1, 3))
    assert change[0] == 0 and change[5] > 1e-6


def test_both_layers_have_as_many_windows() -> None:
    for shift in (0, 3):
        windows = Windows(15, 8, 7, shift)
        assert windows.split(windows.pad(torch.zeros(2, 15, 8, 8)), 2).shape == (2, 3 * 2 * 2, 49, 4)


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_windows_merge_into_the_map_they_were_split_from(shift: int) -> None:
    x = checks.sample(2, 5, 9, 8)
    windows = Windows(5, 9, 4, shift)
    split = windows.split(windows.pad(x), 2)
    assert torch.equal(windows.merge(split, 2), x)
    for position in ((0, 0), (4, 8), (2, 5)):
        window, member = windows.locate(position)
        pixel = split[:, 2 * window : 2 * window + 2, member].flatten(1)
        assert torch.equal(pixel, x[:, position[0], position[1]])


def test_padding_is_read_with_the_biases_of_keys_and_values() -> None:
    layer, x = operator(window_size=4, num_heads=1).regular, checks.sample(1, 8, 3, 4)
    with torch.no_grad():
        before = layer(x)
        layer.query_key_value.bias[-8:] += 1
        change = layer(x) - before
    torch.testing.assert_close(change, layer.out.weight.sum(1)[None, :, None, None].expand_as(change))
    assert layer.pixel_weights(x, (1, 1)).sum().item() < 0.9


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("position", [(0, 0), (4, 3), (5, 8), (2, 2)])
def test_attention_is_what_each_layer_reads(position: tuple[int, int], implementation: str) -> None:
    built, x = operator(implementation=implementation), checks.sample(2, 8, 6, 9)
    reads: list[Tensor] = []
    for layer in (built.regular, built.shifted):
        layer.out.register_forward_hook(lambda module, inputs, output: reads.append(inputs[0]))
    built(x)
    weights = built.attention(x, position)
    assert weights.shape == (2, 4, 6, 9)
    torch.testing.assert_close(weights.sum((2, 3)), torch.ones(2, 4).double())
    maps = x, built.regular(x)
    for index, layer in enumerate((built.regular, built.shifted)):
        value = layer.query_key_value(layer.norm(maps[index].permute(0, 2, 3, 1)))[..., 16:].unflatten(3, (2, 4))
        seen = torch.einsum("bhyx,byxhd->bhd", weights[:, 2 * index : 2 * index + 2], value).flatten(1)
        torch.testing.assert_close(seen, reads[index][:, position[0], position[1]])


def test_offset_has_one_bias_wherever_it_lies() -> None:
    layer = operator(num_heads=1).regular
    bias = layer.bias(layer.windows(torch.zeros(1, 8, 3, 3)))[0].reshape(3, 3, 3, 3)
    assert bias[0, 0, 1, 2] == bias[1, 0, 2, 2] == layer.position[0, 1, 0]
    assert bias[2, 1, 0, 0] == layer.position[0, 4, 3]


@pytest.mark.parametrize("settings", [{"num_heads": 8, "window_size": 4}, {"window_size": 1}])
def test_conformance_of_settings(settings: dict[str, Any]) -> None:
    for implementation in IMPLEMENTATIONS:
        results = checks.run_checks(
            ShiftedWindow,
            only=("shapes", "macs", "attention", "core", "parameter_gradients", "autocast"),
            settings={**settings, "implementation": implementation},
        )
        assert results == dict.fromkeys(results)


def test_cost_is_linear_in_pixels() -> None:
    built = ShiftedWindow(64)
    assert built.macs(28, 28) == 4 * built.macs(14, 14) == 2 * 784 * (4 * 64**2 + 2 * 49 * 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "ShiftedWindow: expected num_heads >= 1 that divides 8 channels, got 3"),
        ({"num_heads": 0}, "ShiftedWindow: expected num_heads >= 1 that divides 8 channels, got 0"),
        ({"window_size": 0}, "ShiftedWindow: expected window_size >= 1, got 0"),
        ({"implementation": "fast"}, "BiasedAttention: expected implementation in .*, got 'fast'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShiftedWindow(8, **settings)
