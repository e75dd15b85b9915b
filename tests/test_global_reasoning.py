"""Global reasoning unit against its equations."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_global_reasoning as oracle
import pytest
import torch
from against_oracle import assert_same

from operators import checks
from operators.global_reasoning import GlobalReasoning

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["reference", "fused"])


@IMPLEMENTATIONS
@pytest.mark.parametrize("size", [(3, 5), (1, 1)])
@pytest.mark.parametrize("flags", [{}, {"normalize": False}, {"rectify": False}])
@pytest.mark.parametrize("settings", [{}, {"num_nodes": 3, "width": 5}])
def test_block_is_the_equation(
    settings: dict[str, int], flags: dict[str, bool], size: tuple[int, int], implementation: str
) -> None:
    operator = checks.construct(GlobalReasoning, 4, implementation=implementation, **settings, **flags)
    assert_same(operator, partial(oracle.block, **flags), checks.sample(2, 4, *size))


def test_widths_are_the_authors() -> None:
    operator = GlobalReasoning(512)
    core = operator.core
    assert (core.adjacency.out_channels, core.state.out_channels, operator.norm.eps) == (128, 256, 1e-4)
    assert core.update.bias is None and core.extend.bias is None


@IMPLEMENTATIONS
@pytest.mark.parametrize("normalize", [True, False])
def test_normalised_sums_do_not_depend_on_the_size_of_the_map(normalize: bool, implementation: str) -> None:
    operator = checks.construct(GlobalReasoning, 8, normalize=normalize, implementation=implementation).double()
    x = checks.sample(2, 8, 5, 7)
    twice = operator(torch.cat((x, x), dim=3))
    same = torch.allclose(twice, operator(x).repeat(1, 1, 1, 2), rtol=1e-10)
    assert same == normalize


def test_equal_nodes_whose_neighbours_average_to_them_vanish() -> None:
    core = GlobalReasoning(8, num_nodes=4, width=3).double().core
    torch.nn.init.constant_(core.adjacency.weight, 1 / 4)
    nodes = checks.sample(2, 3, 1).expand(-1, -1, 4)
    torch.testing.assert_close(core.reason(nodes), torch.zeros_like(nodes))
    torch.nn.init.zeros_(core.adjacency.weight)
    torch.testing.assert_close(core.reason(nodes), core.update(nodes.clamp(min=0)))


def test_fused_is_leaner_where_it_says_so() -> None:
    for settings in ({}, {"num_nodes": 16}, {"width": 40}, {"num_nodes": 300}):
        plain, fused = (GlobalReasoning(64, implementation=name, **settings) for name in ("reference", "fused"))
        nodes, state = plain.core.adjacency.in_channels, plain.core.update.in_channels
        leaner = fused.macs(512, 512) < plain.macs(512, 512)
        assert leaner == (64 * nodes < state * (64 + nodes))


def test_nothing_is_shown_that_does_not_sum_to_one() -> None:
    x = torch.ones(1, 8, 5, 7)
    for call in (partial(GlobalReasoning(8).attention, x, (0, 0)), partial(GlobalReasoning(8).responsibilities, x)):
        with pytest.raises(NotImplementedError, match="GlobalReasoning: expected an operator with"):
            call()


@pytest.mark.parametrize("settings", [{"num_nodes": 5, "width": 70}, {"normalize": False, "rectify": False}])
def test_conformance_of_settings(settings: dict[str, Any]) -> None:
    for implementation in ("reference", "fused"):
        results = checks.run_checks(
            GlobalReasoning,
            only=("shapes", "macs", "core", "parameter_gradients", "autocast"),
            settings={**settings, "implementation": implementation},
        )
        assert results == dict.fromkeys(results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_nodes": 0}, "num_nodes >= 1, got 0"),
        ({"width": 0}, "width >= 1, got 0"),
        ({"channels": 6}, "channels divisible by 4, or a width, got 6"),
        ({"channels": 7, "num_nodes": 2}, "channels divisible by 2, or a width, got 7"),
        ({"implementation": "fast"}, "implementation in .*, got 'fast'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"GlobalReasoning: expected {message}"):
        GlobalReasoning(**{"channels": 8, **settings})
