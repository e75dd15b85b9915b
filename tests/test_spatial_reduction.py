"""Spatial-reduction attention against its equations, at sizes that cells fill and at others."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_spatial_reduction as oracle
import pytest
import torch
from against_oracle import assert_same
from torch import Tensor

from operators import checks
from operators.multi_head_attention import MultiHeadAttention
from operators.spatial_reduction import SpatialReduction

IMPLEMENTATIONS = ["reference", "fused"]


def operator(channels: int = 8, **settings: Any) -> SpatialReduction:
    settings = {"num_heads": 2, "reduction": 2, **settings}
    built: SpatialReduction = checks.construct(SpatialReduction, channels, **settings).double()
    return built


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [(4, 2), (3, 5), (1, 1)])
@pytest.mark.parametrize("reduction", [1, 2, 3])
def test_block_is_the_equation(reduction: int, size: tuple[int, int], implementation: str) -> None:
    built = operator(4, reduction=reduction, implementation=implementation)
    assert_same(built, partial(oracle.block, num_heads=2, reduction=reduction), checks.sample(2, 4, *size))


def test_without_reduction_it_is_multi_head_attention() -> None:
    built, plain = operator(reduction=1), checks.construct(MultiHeadAttention, 8, num_heads=2).double()
    state = built.state_dict()
    for kind in ("weight", "bias"):
        state[f"qkv.{kind}"] = torch.cat((state.pop(f"query.{kind}"), state.pop(f"key_value.{kind}")))
    plain.load_state_dict(state)
    x = checks.sample(2, 8, 5, 7)
    torch.testing.assert_close(built(x), plain(x))
    torch.testing.assert_close(built.attention(x, (3, 2)), plain.attention(x, (3, 2)))
    assert built.macs(5, 7) == plain.macs(5, 7)


@pytest.mark.parametrize("size", [(6, 9), (5, 7), (2, 1), (1, 11)])
def test_attention_is_what_the_output_reads(size: tuple[int, int]) -> None:
    built, x = operator(reduction=3), checks.sample(2, 8, *size)
    captured: list[Tensor] = []
    built.core.register_forward_hook(lambda module, inputs, output: captured.extend((*inputs, output)))
    built(x)
    query, key, value, read = captured
    height, width = size
    token = (height - 1) * width
    of_cells = torch.softmax((query[:, :, token : token + 1] * key).sum(3) / 2, dim=2)  # (B, h, M)
    torch.testing.assert_close((of_cells.unsqueeze(3) * value).sum(2), read[:, :, token])
    weights = built.attention(x, (height - 1, 0))
    torch.testing.assert_close(weights.sum((2, 3)), torch.ones(2, 2).double())
    for image in range(2):
        for head in range(2):
            expected = oracle.spread(of_cells[image, head], height, width, 3)
            torch.testing.assert_close(weights[image, head], expected)


def test_every_pixel_is_read_at_sizes_that_cells_do_not_fill() -> None:
    built, x = operator(reduction=4), checks.sample(1, 8, 5, 6)
    moved = x.clone()
    moved[:, :, 4, 5] += checks.sample(8, seed=2)
    assert (built(moved) - built(x)).abs().amax((0, 1)).gt(1e-12).all()


def test_padding_is_counted() -> None:
    built = operator(reduction=4)
    assert built.macs(5, 7) - built.macs(5, 5) == 10 * (2 * 8**2 + 2 * 4 * 8)


def test_published_settings() -> None:
    built = SpatialReduction(512)
    assert (built.num_heads, built.reduction, built.core.factor) == (8, 4, 64**-0.5)
    assert built.reduce[0].weight.shape == (512, 512, 4, 4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", [1, 3, 8])
def test_conformance_of_settings(reduction: int, implementation: str) -> None:
    results = checks.run_checks(
        SpatialReduction,
        only=("shapes", "macs", "attention", "core", "parameter_gradients"),
        settings={"reduction": reduction, "implementation": implementation},
    )
    assert results == dict.fromkeys(results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "SpatialReduction: expected num_heads >= 1 that divides 8 channels, got 3"),
        ({"reduction": 0}, "SpatialReduction: expected reduction >= 1, got 0"),
        ({"implementation": "fast"}, "HeadAttention: expected implementation in .*, got 'fast'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpatialReduction(8, **settings)
