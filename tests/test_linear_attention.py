"""Linear attention against the quadratic form that it is equal to."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_linear_attention as oracle
import pytest
import torch
from against_oracle import assert_same
from oracle_layers import to_map
from torch import Tensor

from operators import checks
from operators.linear_attention import KernelAttention, LinearAttention


def operator(channels: int = 8, **settings: Any) -> LinearAttention:
    built: LinearAttention = checks.construct(LinearAttention, channels, **{"num_heads": 2, **settings}).double()
    return built


@pytest.mark.parametrize("num_heads", [1, 2, 6])
def test_block_is_the_quadratic_equation(num_heads: int) -> None:
    assert_same(operator(6, num_heads=num_heads), partial(oracle.block, num_heads=num_heads), checks.sample(2, 6, 3, 4))


@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_is_each_heads_own(num_heads: int) -> None:
    built, x = operator(num_heads=num_heads), checks.sample(2, 8, 3, 4)
    for index, image in enumerate(x):
        rows = oracle.weights(to_map(image), built.state_dict(), num_heads)
        for row, column in ((0, 0), (2, 1)):
            expected = torch.stack([torch.stack(head[row * 4 + column]) for head in rows]).reshape(num_heads, 3, 4)
            torch.testing.assert_close(built.attention(x, (row, column))[index], expected)


def test_attention_is_what_the_output_reads() -> None:
    built, x = operator(), checks.sample(2, 8, 5, 7)
    captured: list[Tensor] = []
    built.core.register_forward_hook(lambda module, inputs, output: captured.extend((inputs[2], output)))
    built(x)
    value, read = captured
    weights = built.attention(x, (3, 2)).flatten(2)
    assert weights.gt(0).all()
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 2).double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((weights.unsqueeze(3) * value).sum(2), read[:, :, 3 * 7 + 2])


def test_no_tensor_grows_with_the_square_of_the_pixels() -> None:
    built, largest = operator().float(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: largest.append(tensor.numel()), lambda _: None):
        built(checks.sample(1, 8, 32, 32, dtype=torch.float32))
    assert max(largest) <= 3 * 8 * 32 * 32


def test_cost_is_that_of_the_state_and_not_of_pairs() -> None:
    assert operator().macs(10, 20) == 200 * (4 * 64 + 2 * 8 * 4 + 8)
    assert operator().macs(40, 20) == 4 * operator().macs(10, 20)


def test_keys_whose_features_underflow_are_not_divided_by_zero() -> None:
    core, low = KernelAttention(), torch.full((1, 1, 5, 4), -200.0, requires_grad=True)
    y = core(low, low, torch.ones(1, 1, 5, 4))
    y.sum().backward()
    assert y.isfinite().all()
    assert low.grad is not None and low.grad.isfinite().all()


def test_core_reads_other_positions_of_another_width() -> None:
    core = KernelAttention()
    query, key, value = checks.sample(2, 3, 5, 4), checks.sample(2, 3, 7, 4, seed=2), checks.sample(2, 3, 7, 6, seed=3)
    expected = torch.einsum("bhnm,bhmd->bhnd", core.weights(query, key), value)
    torch.testing.assert_close(core(query, key, value), expected)


@pytest.mark.parametrize("num_heads", [1, 16])
def test_conformance_of_settings(num_heads: int) -> None:
    results = checks.run_checks(
        LinearAttention, only=("shapes", "macs", "attention", "core"), settings={"num_heads": num_heads}
    )
    assert results == dict.fromkeys(results)


@pytest.mark.parametrize("num_heads", [0, 3])
def test_arguments_out_of_range(num_heads: int) -> None:
    message = f"LinearAttention: expected num_heads >= 1 that divides 8 channels, got {num_heads}"
    with pytest.raises(ValueError, match=message):
        LinearAttention(8, num_heads=num_heads)
