"""Efficient attention against its equations, and the dot-product attention that it equals or approximates."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_gather_attention as oracle
import pytest
import torch
from against_oracle import assert_same
from torch import Tensor

from operators import checks
from operators.double_attention import DoubleAttention
from operators.efficient_attention import EfficientAttention
from operators.non_local import NonLocalAggregation

IMPLEMENTATIONS = ["reference", "fused"]
NORMALIZATIONS = ["softmax", "scaling"]


def operator(channels: int = 8, **settings: Any) -> EfficientAttention:
    built = checks.construct(EfficientAttention, channels, **settings).double()
    assert isinstance(built, EfficientAttention)
    return built


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("num_heads", [1, 2])
def test_module_is_the_equation(num_heads: int, normalization: str, implementation: str) -> None:
    settings = {"num_heads": num_heads, "normalization": normalization}
    built = operator(6, key_width=4, value_width=8, implementation=implementation, **settings)
    assert_same(built, partial(oracle.efficient_attention, **settings), checks.sample(2, 6, 3, 4))


def test_widths_are_half_and_all_of_the_channels() -> None:
    stage = EfficientAttention(32).stage
    assert (stage.key_width, stage.value_width, stage.core.num_heads) == (16, 32, 1)


def test_keys_sum_to_one_over_positions_and_queries_over_the_channels_of_a_head() -> None:
    queries, keys = operator(num_heads=2).stage.weights(checks.sample(2, 8, 3, 4))
    assert queries.shape == keys.shape == (2, 2, 2, 12)
    torch.testing.assert_close(keys.sum(3), torch.ones(2, 2, 2).double())
    torch.testing.assert_close(queries.sum(2), torch.ones(2, 2, 12).double())


def test_softmax_is_not_scaled() -> None:
    built, x = operator(), checks.sample(1, 8, 3, 4)
    queries, _ = built.stage.weights(x)
    torch.testing.assert_close(queries[:, 0], torch.softmax(built.stage.query(x).flatten(2), dim=1))


def test_scaling_is_dot_product_attention_of_non_local() -> None:
    core = operator(normalization="scaling").core
    query, key, value = checks.sample(2, 4, 15), checks.sample(2, 4, 15, seed=2), checks.sample(2, 8, 15, seed=3)
    dot_product = NonLocalAggregation("dot_product", 4, scale=False, implementation="reference")
    torch.testing.assert_close(core(query, key, value), dot_product(query, key, value))


def test_softmax_only_approximates_softmax_attention() -> None:
    core = operator().core
    query, key, value = checks.sample(2, 4, 15), checks.sample(2, 4, 15, seed=2), checks.sample(2, 8, 15, seed=3)
    exact = NonLocalAggregation("embedded_gaussian", 4, scale=False, implementation="reference")
    assert (core(query, key, value) - exact(query, key, value)).abs().max() > 0.1
    queries, keys = core.weights(query, key)
    weights = torch.matmul(queries.transpose(2, 3), keys)  # (B, 1, N, N)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(3), torch.ones(2, 1, 15).double())


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_output_is_what_attention_reads(normalization: str) -> None:
    built, x = operator(num_heads=2, normalization=normalization), checks.sample(2, 8, 3, 4)
    seen: list[Tensor] = []
    built.core.register_forward_hook(lambda module, inputs, output: seen.append(output))
    built(x)
    values = built.stage.value(x).reshape(2, 2, 4, 3, 4)
    for row in range(3):
        for column in range(4):
            weights = built.attention(x, (row, column))  # (B, h, H, W)
            read = (weights.unsqueeze(2) * values).sum((3, 4)).flatten(1)
            torch.testing.assert_close(read, seen[0][:, :, 4 * row + column])


def test_one_head_with_softmax_is_double_attention() -> None:
    built = operator(key_width=3, value_width=5)
    double = checks.construct(DoubleAttention, 8, width=5, num_maps=3, fusion="add").double()
    double.load_state_dict(built.state_dict())
    x = checks.sample(2, 8, 3, 4)
    torch.testing.assert_close(double(x), built(x))


def test_cost_is_linear_in_positions() -> None:
    for implementation in IMPLEMENTATIONS:
        built = operator(64, implementation=implementation)
        assert built.macs(64, 64) <= 4 * built.macs(32, 32)
    assert operator(64).macs(8, 8) == 64 * (2 * 64 * (32 + 64) + 2 * 32 * 64)
    assert operator(64, implementation="fused").macs(8, 8) == 64 * 4 * 64 * 32 + 2 * 64 * 32 * 64


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "settings", [{"num_heads": 4}, {"num_heads": 2, "key_width": 6, "value_width": 10, "normalization": "scaling"}]
)
def test_conformance_of_settings(settings: dict[str, Any], implementation: str) -> None:
    results = checks.run_checks(
        EfficientAttention,
        only=("shapes", "macs", "macs_batch", "attention", "core", "parameter_gradients", "autocast"),
        settings={**settings, "implementation": implementation},
    )
    assert results == dict.fromkeys(results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key_width": 0}, "GatherAttention: expected key_width >= 1, got 0"),
        ({"value_width": 0}, "GatherAttention: expected value_width >= 1, got 0"),
        ({"num_heads": 0}, "GatherAttention: expected num_heads >= 1 that divides 4 channels, got 0"),
        ({"num_heads": 2, "key_width": 3}, "GatherAttention: expected num_heads >= 1 that divides 3 channels, got 2"),
        ({"num_heads": 2, "value_width": 3}, "GatherAttention: expected num_heads >= 1 that divides 3 channels, got 2"),
        ({"normalization": "l2"}, "GatherAttention: expected normalization in .*, got 'l2'"),
        ({"implementation": "fast"}, "GatherAttention: expected implementation in .*, got 'fast'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EfficientAttention(8, **settings)


def test_channels_have_to_be_even_without_a_width() -> None:
    with pytest.raises(ValueError, match="EfficientAttention: expected channels divisible by 2, or a width, got 7"):
        EfficientAttention(7)
    assert EfficientAttention(7, key_width=3)(torch.ones(1, 7, 2, 3)).shape == (1, 7, 2, 3)
