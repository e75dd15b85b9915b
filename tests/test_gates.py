"""SE, CBAM, ECA and coordinate attention against their equations, and the authors' choices."""

from __future__ import annotations

from typing import Any

import oracle_gates as oracle
import pytest
import torch
from against_oracle import assert_same
from torch import Tensor

from operators import checks, get
from operators.cbam import ConvolutionalBlockAttention
from operators.coordinate_attention import CoordinateAttention
from operators.efficient_channel import EfficientChannelAttention
from operators.squeeze_excitation import SqueezeExcitation

GATES = ["squeeze_excitation", "cbam", "efficient_channel", "coordinate_attention"]


def operator(name: str, channels: int = 8, **settings: Any) -> Any:
    return checks.construct(get(name), channels, **settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("squeeze_excitation", {"reduction": 2}),
        ("squeeze_excitation", {"reduction": 4, "bias": True}),
        ("cbam", {"reduction": 2}),
        ("cbam", {"reduction": 4, "kernel_size": 3, "norm": False}),
        ("efficient_channel", {}),
        ("efficient_channel", {"kernel_size": 5}),
        ("coordinate_attention", {}),
        ("coordinate_attention", {"reduction": 1}),
    ],
)
def test_gate_is_the_equation(name: str, settings: dict[str, Any]) -> None:
    assert_same(operator(name, **settings), getattr(oracle, name), checks.sample(2, 8, 3, 5))


@pytest.mark.parametrize("name", GATES)
def test_gates_lie_between_zero_and_one(name: str) -> None:
    x = checks.sample(2, 64, 5, 7)
    ratio = operator(name, 64).double()(x) / x
    assert ((ratio > 0) & (ratio < 1)).all()


@pytest.mark.parametrize("name", ["squeeze_excitation", "efficient_channel"])
def test_channels_have_one_gate_each(name: str) -> None:
    x = checks.sample(2, 64, 5, 7)
    ratio = operator(name, 64).double()(x) / x
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(x))


def test_cbam_gates_channels_before_positions() -> None:
    built, x = operator("cbam", 64).double(), checks.sample(2, 64, 5, 7)
    channels = built.channel_gate(x) / x
    torch.testing.assert_close(channels, channels[:, :, :1, :1].expand_as(x))
    positions = built(x) / built.channel_gate(x)
    torch.testing.assert_close(positions, positions[:, :1].expand_as(x))
    assert (built(x) - built.channel_gate(built.spatial_gate(x))).abs().amax() > 1e-3


def test_cbam_shares_one_perceptron() -> None:
    channels, hidden = 64, 4
    expected = 2 * channels * hidden + hidden + channels + 2 * 49 + 2
    assert sum(parameter.numel() for parameter in ConvolutionalBlockAttention(64).parameters()) == expected


def test_cbam_divides_the_gradient_among_equal_maxima() -> None:
    built = operator("cbam", 16).double()
    x = torch.ones(1, 16, 3, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(built.channel_gate(x).sum(), x)
    torch.testing.assert_close(gradient, gradient[:, :, :1, :1].expand_as(x))
    step = 1e-6 * torch.ones_like(x)
    with torch.no_grad():
        slope = (built.channel_gate(x + step).sum() - built.channel_gate(x - step).sum()) / 2e-6
    torch.testing.assert_close(gradient.sum(), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "expected"), [(16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)]
)
def test_kernel_follows_the_width(channels: int, expected: int) -> None:
    built = EfficientChannelAttention(channels)
    assert built.kernel_size == expected
    assert sum(parameter.numel() for parameter in built.parameters()) == expected


def test_kernel_follows_gamma_and_offset() -> None:
    assert EfficientChannelAttention(512, gamma=1, offset=0).kernel_size == 9
    assert EfficientChannelAttention(512, gamma=-1, offset=2).kernel_size == 11


def test_neighbouring_channels_alone_are_seen() -> None:
    built = operator("efficient_channel", 64).double()
    x = checks.sample(1, 64, 3, 5)
    moved = x.clone()
    moved[:, 10] += 1
    changed = (built(moved) / moved - built(x) / x).abs().amax((0, 2, 3)) > 1e-12
    assert changed.nonzero().flatten().tolist() == [9, 10, 11]


@pytest.mark.parametrize(("channels", "reduction", "hidden"), [(64, 32, 8), (512, 32, 16), (100, 8, 12), (8, 1, 8)])
def test_hidden_channels_have_a_floor(channels: int, reduction: int, hidden: int) -> None:
    assert CoordinateAttention(channels, reduction=reduction).hidden == hidden


def test_gate_of_coordinates_is_a_product_of_rows_and_columns() -> None:
    x = checks.sample(1, 16, 5, 7)
    ratio = (operator("coordinate_attention", 16).double()(x) / x).log()
    mixed = ratio - ratio[:, :, :1] - ratio[:, :, :, :1] + ratio[:, :, :1, :1]
    torch.testing.assert_close(mixed, torch.zeros_like(mixed), rtol=0, atol=1e-9)


def test_rows_and_columns_have_gates_of_their_own() -> None:
    built = operator("coordinate_attention", 16).double()
    x = checks.sample(1, 16, 5, 5)
    assert (built(x) - built(x.transpose(2, 3)).transpose(2, 3)).abs().amax() > 1e-3


def test_constant_cost_of_channel_gates() -> None:
    for built, cost in ((SqueezeExcitation(512), 2 * 512 * 32), (EfficientChannelAttention(512), 5 * 512)):
        assert built.macs(1, 1) == built.macs(128, 128) == cost


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("squeeze_excitation", {"reduction": 4, "bias": True}),
        ("cbam", {"reduction": 8, "kernel_size": 3, "norm": False}),
        ("efficient_channel", {"kernel_size": 9}),
        ("coordinate_attention", {"reduction": 4}),
    ],
)
def test_conformance_of_settings(name: str, settings: dict[str, Any]) -> None:
    only = ("shapes", "macs", "memory_format", "parameter_gradients")
    results = checks.run_checks(get(name), only=only, settings=settings)
    assert results == dict.fromkeys(results)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("squeeze_excitation", {"reduction": 3}, "SqueezeExcitation: expected channels divisible by the reduction 3"),
        ("squeeze_excitation", {"reduction": 0}, "SqueezeExcitation: expected channels divisible by the reduction 0"),
        ("cbam", {"reduction": 3}, "ConvolutionalBlockAttention: expected channels divisible by the reduction 3"),
        ("cbam", {"kernel_size": 4}, "ConvolutionalBlockAttention: expected an odd kernel_size >= 1, got 4"),
        ("cbam", {"kernel_size": -1}, "ConvolutionalBlockAttention: expected an odd kernel_size >= 1, got -1"),
        ("efficient_channel", {"kernel_size": 2}, "EfficientChannelAttention: expected an odd kernel_size >= 1, got 2"),
        ("efficient_channel", {"gamma": 0}, "EfficientChannelAttention: expected gamma other than 0, got 0"),
        ("coordinate_attention", {"reduction": 0}, "CoordinateAttention: expected reduction >= 1, got 0"),
    ],
)
def test_arguments_out_of_range(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get(name)(16, **settings)


def _spatial(built: Any, x: Tensor) -> Tensor:
    gated: Tensor = built.spatial_gate(x) / x
    return gated


def test_gate_of_positions_is_normalised_unless_told() -> None:
    x = checks.sample(2, 16, 5, 7)
    plain = operator("cbam", 16, norm=False)
    assert plain.spatial_gate.conv.bias is not None
    assert ConvolutionalBlockAttention(16).spatial_gate.conv.bias is None
    trained = ConvolutionalBlockAttention(16).double().train()
    energies = torch.logit(_spatial(trained, x)[:, 0])
    torch.testing.assert_close(energies.mean(), torch.zeros(()).double(), rtol=0, atol=1e-6)
