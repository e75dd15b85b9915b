"""Multi-head self-attention against its equations, and the heads that other operators share."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_multi_head_attention as oracle
import pytest
import torch
from against_oracle import assert_same
from oracle_layers import to_map
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from operators import checks
from operators.head_attention import HeadAttention, merge_heads, split_heads
from operators.multi_head_attention import MultiHeadAttention

IMPLEMENTATIONS = ["reference", "fused"]


def operator(channels: int = 8, **settings: Any) -> MultiHeadAttention:
    built: MultiHeadAttention = checks.construct(MultiHeadAttention, channels, **{"num_heads": 2, **settings}).double()
    return built


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("num_heads", [1, 2, 6])
def test_block_is_the_equation(num_heads: int, implementation: str) -> None:
    built = operator(6, num_heads=num_heads, implementation=implementation)
    assert_same(built, partial(oracle.block, num_heads=num_heads), checks.sample(2, 6, 3, 4))


@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_is_each_heads_own(num_heads: int) -> None:
    built, x = operator(num_heads=num_heads), checks.sample(2, 8, 3, 4)
    for index, image in enumerate(x):
        rows = oracle.weights(to_map(image), built.state_dict(), num_heads)
        for row, column in ((0, 0), (2, 1)):
            expected = torch.stack([torch.stack(head[row * 4 + column]) for head in rows]).reshape(num_heads, 3, 4)
            torch.testing.assert_close(built.attention(x, (row, column))[index], expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_attention_is_what_the_output_reads(implementation: str) -> None:
    built, x = operator(implementation=implementation), checks.sample(2, 8, 5, 7)
    captured: list[Tensor] = []
    built.core.register_forward_hook(lambda module, inputs, output: captured.extend((inputs[2], output)))
    built(x)
    value, read = captured
    weights = built.attention(x, (3, 2)).flatten(2)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 2).double())
    torch.testing.assert_close((weights.unsqueeze(3) * value).sum(2), read[:, :, 3 * 7 + 2])


def test_pixels_have_no_order() -> None:
    built, x = operator(), checks.sample(1, 8, 4, 5)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shuffled = x.flatten(2)[:, :, order].reshape(x.shape)
    torch.testing.assert_close(built(shuffled).flatten(2), built(x).flatten(2)[:, :, order])


def test_number_of_heads_changes_the_function_and_neither_parameters_nor_cost() -> None:
    few, many = operator(num_heads=1), operator(num_heads=8)
    many.load_state_dict(few.state_dict())
    x = checks.sample(1, 8, 4, 5)
    assert few.macs(97, 97) == many.macs(97, 97)
    assert not torch.allclose(few(x), many(x))


def test_width_of_a_head_is_the_papers_at_512_channels() -> None:
    built = MultiHeadAttention(512)
    assert built.core.factor == 64**-0.5
    assert sum(value.numel() for value in built.parameters()) == 4 * 512 * 512 + 4 * 512 + 2 * 512


def test_fused_runs_in_the_kernel_that_builds_no_map() -> None:
    # The kernel refuses heads whose channels do not lie side by side.
    built = operator(implementation="fused").float()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = checks.sample(2, 8, 5, 7, dtype=torch.float32).contiguous(memory_format=memory_format)
        with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            assert built(x).isfinite().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_core_reads_other_positions_of_another_width(implementation: Any) -> None:
    core = HeadAttention(4, implementation=implementation)
    query, key, value = checks.sample(2, 3, 5, 4), checks.sample(2, 3, 7, 4, seed=2), checks.sample(2, 3, 7, 6, seed=3)
    expected = torch.einsum("bhnm,bhmd->bhnd", core.weights(query, key), value)
    torch.testing.assert_close(core(query, key, value), expected)


def test_merging_undoes_splitting() -> None:
    tokens = checks.sample(2, 5, 12)
    assert split_heads(tokens, 3).shape == (2, 3, 5, 4)
    assert torch.equal(merge_heads(split_heads(tokens, 3)), tokens)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_conformance_of_settings(implementation: str) -> None:
    results = checks.run_checks(
        MultiHeadAttention,
        only=("shapes", "macs", "attention", "core"),
        settings={"num_heads": 1, "implementation": implementation},
    )
    assert results == dict.fromkeys(results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "MultiHeadAttention: expected num_heads >= 1 that divides 8 channels, got 3"),
        ({"num_heads": 0}, "MultiHeadAttention: expected num_heads >= 1 that divides 8 channels, got 0"),
        ({"implementation": "fast"}, "HeadAttention: expected implementation in .*, got 'fast'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(8, **settings)
