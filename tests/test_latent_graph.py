"""LatentGNN against its equations."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_latent_graph as oracle
import pytest
import torch
from against_oracle import assert_same
from torch import Tensor

from operators import checks
from operators.latent_graph import LatentGraph, LatentPropagation

MODES = pytest.mark.parametrize("mode", ["asymmetric", "symmetric"])


def block(channels: int = 8, **settings: Any) -> LatentGraph:
    operator: LatentGraph = checks.construct(LatentGraph, channels, **settings).double()
    return operator


@MODES
@pytest.mark.parametrize("size", [(3, 4), (1, 1)])
@pytest.mark.parametrize("settings", [{"latent_nodes": (5,)}, {"latent_nodes": (3, 6), "reduction": 2}])
def test_block_is_the_equation(settings: dict[str, Any], size: tuple[int, int], mode: str) -> None:
    operator = checks.construct(LatentGraph, 8, mode=mode, **settings)
    expected = partial(oracle.block, groups=len(settings["latent_nodes"]), symmetric=mode == "symmetric")
    assert_same(operator, expected, checks.sample(2, 8, *size))


def test_nothing_is_added_at_initialisation_and_symmetry_shares_layers() -> None:
    x = torch.randn(2, 16, 5, 7)
    for mode, absent in (("asymmetric", False), ("symmetric", True)):
        operator = LatentGraph(16, mode=mode)  # type: ignore[arg-type]
        assert torch.equal(operator(x), x)
        assert absent != any("from" in name for name, _ in operator.named_parameters())


@MODES
def test_weights_are_of_unit_length(mode: str) -> None:
    operator = block(latent_nodes=(5, 4), mode=mode)
    _, groups = operator._weights(checks.sample(2, 8, 5, 7))
    for to_latent, from_latent in groups:
        for weights, dim in ((to_latent, 1 if mode == "symmetric" else 2), (from_latent, 1)):
            lengths = weights.norm(dim=dim)
            torch.testing.assert_close(lengths[lengths > 0], torch.ones_like(lengths[lengths > 0]))
            assert (lengths > 0).any()


def test_nodes_of_one_direction_exchange_their_mean() -> None:
    core = LatentPropagation()
    x = checks.sample(2, 3, 1).expand(-1, -1, 6)
    to_latent, from_latent = checks.sample(2, 4, 6).abs(), checks.sample(2, 4, 6, seed=2).abs()
    nodes = to_latent.sum(2, keepdim=True) * x[:, None, :, 0]  # (B, K, d)
    mean = nodes.mean(1, keepdim=True).transpose(1, 2)  # (B, d, 1)
    torch.testing.assert_close(core(x, to_latent, from_latent), mean * from_latent.sum(1, keepdim=True))


@MODES
def test_attention_is_what_the_output_reads(mode: str) -> None:
    operator = block(latent_nodes=(5, 4), mode=mode)
    x = checks.sample(2, 8, 5, 7)
    calls: list[tuple[Tensor, Tensor]] = []
    operator.core.register_forward_hook(lambda module, inputs, output: calls.append((inputs[0], output)))
    operator(x)
    weights = operator.attention(x, (3, 2)).flatten(2)
    assert weights.shape == (2, len(calls), 35)
    for group, (pixels, received) in enumerate(calls):
        read = (weights[:, group : group + 1] * pixels).sum(2)
        torch.testing.assert_close(read, received[:, :, 3 * 7 + 2])
        assert read.abs().amax() > 1e-3


def test_responsibilities_are_the_ways_back() -> None:
    operator = block(latent_nodes=(5, 4))
    x = checks.sample(2, 8, 5, 7)
    weights = torch.cat([back for _, back in operator._weights(x)[1]], 1)[:, :, 3 * 7 + 2]
    torch.testing.assert_close(operator.responsibilities(x)[:, :, 3, 2], weights / weights.sum(1, keepdim=True))
    with pytest.raises(IndexError, match="LatentGraph: expected stage 0 or -1, got 1"):
        operator.responsibilities(x, 1)


@MODES
def test_pixels_without_nodes_are_no_division_by_zero(mode: str) -> None:
    operator = block(latent_nodes=(5,), mode=mode).float()
    with torch.no_grad():
        for layer in (operator.to_latent, *(() if operator.symmetric else (operator.from_latent,))):
            layer[0].norm.bias.fill_(-1e3)
    x = checks.sample(2, 8, 5, 7, dtype=torch.float32).requires_grad_()
    y = operator(x)
    torch.testing.assert_close(operator.responsibilities(x), torch.full((2, 5, 5, 7), 0.2))
    for gradient in torch.autograd.grad(y.square().sum(), [x, *operator.parameters()]):
        assert gradient.isfinite().all()


def test_cost_of_the_authors_example() -> None:
    with torch.device("meta"):
        operator = LatentGraph(1024, latent_nodes=(100, 100), reduction=8)
    convolutions = 2 * 1024 * 128 + 4 * 128 * 100 + 256 * 1024
    assert sum(value.numel() for value in operator.parameters() if value.ndim > 1) == convolutions
    assert operator.macs(30, 30) == 900 * convolutions + 2 * (2 * 900 * 100 * 128 + 2 * 100**2 * 128)


@MODES
@pytest.mark.parametrize("settings", [{"latent_nodes": [7, 3], "reduction": 2}])
def test_conformance_of_settings(settings: dict[str, Any], mode: str) -> None:
    results = checks.run_checks(
        LatentGraph,
        only=("shapes", "macs", "attention", "responsibilities", "core", "parameter_gradients", "autocast", "compile"),
        settings={**settings, "mode": mode},
    )
    assert results == dict.fromkeys(results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_nodes": ()}, r"latent_nodes >= 1, got \(\)"),
        ({"latent_nodes": (4, 0)}, r"latent_nodes >= 1, got \(4, 0\)"),
        ({"reduction": 3}, "channels divisible by the reduction 3, got 8"),
        ({"mode": "both"}, "mode in .*, got 'both'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"LatentGraph: expected {message}"):
        LatentGraph(8, **settings)
