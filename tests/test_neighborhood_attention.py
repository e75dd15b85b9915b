"""Neighbourhood attention against its equations, at borders, with dilation, and on maps smaller than one."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_neighborhood_attention as oracle
import pytest
import torch
from against_oracle import assert_same
from torch import Tensor

from operators import checks
from operators.neighborhood_attention import Axis, NeighborhoodAttention

IMPLEMENTATIONS = ["reference", "fused"]


def operator(channels: int = 8, **settings: Any) -> NeighborhoodAttention:
    built = checks.construct(NeighborhoodAttention, channels, **{"num_heads": 2, "kernel_size": 3, **settings})
    assert isinstance(built, NeighborhoodAttention)
    return built.double()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (5, 7)),
        ({}, (2, 4)),
        ({}, (1, 1)),
        ({"dilation": 2}, (7, 6)),
        ({"dilation": 2}, (5, 3)),
        ({"dilation": 4}, (6, 2)),
        ({"kernel_size": 5, "num_heads": 1}, (7, 3)),
        ({"kernel_size": 1}, (3, 2)),
    ],
)
def test_block_is_the_papers(settings: dict[str, int], size: tuple[int, int], implementation: str) -> None:
    settings = {"num_heads": 2, "kernel_size": 3, **settings}
    built = operator(4, implementation=implementation, **settings)
    assert_same(built, partial(oracle.block, **settings), checks.sample(2, 4, *size))


@pytest.mark.parametrize("dilation", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("length", [1, 2, 6, 7, 13, 17])
def test_axis_reads_the_nearest_positions(length: int, kernel_size: int, dilation: int) -> None:
    axis = Axis(length, kernel_size, dilation)
    read, offset = axis.around(torch.arange(length))
    positions, available, offsets = axis.tiled(torch.device("cpu"))
    slots = axis.slots(torch.device("cpu"))
    assert positions.flatten()[slots].tolist() == list(range(length))
    for position in range(length):
        expected = oracle.nearest(position, length, kernel_size, dilation)
        assert read[position][offset[position] >= 0].tolist() == expected
        tile, step = divmod(int(slots[position]), kernel_size)
        seen = offsets[tile, step] >= 0
        assert available[tile][seen].tolist() == expected
        steps = [(position - other) // dilation + kernel_size - 1 for other in expected]
        assert offsets[tile, step][seen].tolist() == offset[position][offset[position] >= 0].tolist() == steps


def test_every_pixel_has_all_its_neighbours() -> None:
    built, x = operator(kernel_size=5), checks.sample(1, 8, 9, 7)
    for position in ((0, 0), (4, 3), (8, 6), (1, 5)):
        assert (built.attention(x, position) > 0).sum((2, 3)).tolist() == [[25, 25]]


def test_dilated_maps_do_not_read_each_other() -> None:
    built, x = operator(dilation=2), checks.sample(1, 8, 9, 9)
    moved = x.clone()
    moved[:, :, 4, 3] += checks.sample(8, seed=2)
    change = (built(moved) - built(x)).abs().amax((0, 1)).gt(1e-12)
    assert change[0::2, 1::2].any() and change.sum() == change[0::2, 1::2].sum()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dilation", [1, 3])
def test_attention_is_what_the_output_reads(dilation: int, implementation: str) -> None:
    built, x = operator(dilation=dilation, implementation=implementation), checks.sample(2, 8, 8, 5)
    reads: list[Tensor] = []
    built.out.register_forward_hook(lambda module, inputs, output: reads.append(inputs[0]))
    built(x)
    value = built.project(x)[2]
    for row, column in ((0, 0), (7, 4), (3, 2)):
        weights = built.attention(x, (row, column))
        torch.testing.assert_close(weights.sum((2, 3)), torch.ones(2, 2).double())
        seen = torch.einsum("bhyx,bhyxd->bhd", weights, value).flatten(1)
        torch.testing.assert_close(seen, reads[0][:, row, column])


def test_tiles_keep_less_than_neighbourhoods() -> None:
    def saved(implementation: str) -> int:
        built, count = operator(32, kernel_size=7, implementation=implementation), []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: count.append(tensor.numel()), lambda _: None):
            built(checks.sample(1, 32, 21, 21))
        return sum(count)

    assert 2 * saved("fused") < saved("reference")


def test_published_table_and_heads() -> None:
    built = NeighborhoodAttention(512)
    assert built.position.shape == (16, 13, 13)
    assert NeighborhoodAttention(64).num_heads == 2
    assert built.macs(20, 30) == 600 * (4 * 512**2 + 2 * 49 * 512)


@pytest.mark.parametrize("settings", [{"kernel_size": 3, "dilation": 2, "num_heads": 8}, {"dilation": 8}])
def test_conformance_of_settings(settings: dict[str, Any]) -> None:
    for implementation in IMPLEMENTATIONS:
        results = checks.run_checks(
            NeighborhoodAttention,
            only=("shapes", "macs", "attention", "core", "parameter_gradients", "autocast"),
            settings={**settings, "implementation": implementation},
        )
        assert results == dict.fromkeys(results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "NeighborhoodAttention: expected num_heads >= 1 that divides 8 channels, got 3"),
        ({"kernel_size": 4}, "NeighborhoodAttention: expected kernel_size >= 1 and odd, got 4"),
        ({"kernel_size": -1}, "NeighborhoodAttention: expected kernel_size >= 1 and odd, got -1"),
        ({"dilation": 0}, "NeighborhoodAttention: expected dilation >= 1, got 0"),
        ({"implementation": "fast"}, "BiasedAttention: expected implementation in .*, got 'fast'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeighborhoodAttention(8, **settings)
