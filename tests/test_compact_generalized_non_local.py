"""CGNL against the generalised non-local operation that it computes without its matrix of all pairs."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_compact_generalized_non_local as oracle
import pytest
import torch
from against_oracle import assert_same
from torch import Tensor

from operators import checks
from operators.compact_generalized_non_local import CompactGeneralizedNonLocal, TaylorKernel


def operator(channels: int = 8, **settings: Any) -> CompactGeneralizedNonLocal:
    built = checks.construct(CompactGeneralizedNonLocal, channels, **{"num_groups": 2, **settings}).double()
    assert isinstance(built, CompactGeneralizedNonLocal)
    return built


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("num_groups", [1, 2])
def test_dot_product_block_is_the_equation(num_groups: int, scale: bool) -> None:
    expected = partial(oracle.block, kernel=oracle.dot_product, num_groups=num_groups, scale=scale)
    assert_same(operator(num_groups=num_groups, scale=scale), expected, checks.sample(2, 8, 2, 3))


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("scale", [False, True])
def test_gaussian_block_is_the_equation(order: int, scale: bool) -> None:
    kernel = partial(oracle.taylor, order=order, gamma=0.3)
    expected = partial(oracle.block, kernel=kernel, num_groups=2, scale=scale)
    assert_same(operator(kernel="gaussian", order=order, gamma=0.3, scale=scale), expected, checks.sample(1, 8, 2, 3))


def entries(*shape: int) -> list[Tensor]:
    return [checks.sample(*shape, seed=seed) for seed in (1, 2, 3)]


def test_series_tends_to_the_gaussian() -> None:
    theta, phi, g = (torch.sign(part) if index < 2 else part for index, part in enumerate(entries(1, 2, 6)))
    kernel = partial(oracle.gaussian, gamma=0.5)
    exact = torch.stack(oracle.attend(*(list(part.flatten()) for part in (theta, phi, g)), kernel))  # type: ignore[call-arg]
    errors = []
    for order in (0, 2, 4, 8, 16):
        series = TaylorKernel("gaussian", order=order, gamma=0.5, num_groups=1, scale=False)
        errors.append(float((series(theta, phi, g).flatten() - exact).abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-12


def test_gaussian_of_entries_of_size_one_is_the_radial_basis_function() -> None:
    for theta in (-1.0, 1.0):
        for phi in (-1.0, 1.0):
            pair = torch.tensor(theta), torch.tensor(phi)
            torch.testing.assert_close(oracle.gaussian(*pair, gamma=0.7), torch.exp(-0.7 * (pair[0] - pair[1]) ** 2))


@pytest.mark.parametrize("kernel", ["dot_product", "gaussian"])
def test_groups_attend_among_themselves(kernel: Any) -> None:
    core = TaylorKernel(kernel, order=3, gamma=0.3, num_groups=2, scale=False)
    theta, phi, g = entries(1, 4, 6)
    base = core(theta, phi, g)
    phi, g = phi.clone(), g.clone()
    phi[:, 3, 5] += 1
    g[:, 2, 0] += 1
    moved = core(theta, phi, g)
    assert torch.equal(moved[:, :2], base[:, :2])
    assert (moved[:, 2:] != base[:, 2:]).all()


def test_every_channel_reads_every_channel_of_its_group() -> None:
    core = TaylorKernel("dot_product", order=3, gamma=0.3, num_groups=1, scale=False)
    theta, phi, g = entries(1, 4, 6)
    moved = g.clone()
    moved[:, 3, 5] += 1
    assert (core(theta, phi, moved) != core(theta, phi, g)).all()


def test_group_normalisation_leaves_the_sign_of_the_dot_product() -> None:
    built, x = operator(), checks.sample(2, 8, 5, 7)
    built.norm.eps = 0.0
    weight = built.g.weight.clone()
    outputs = []
    for factor in (1, 3, -3):
        built.g.weight = torch.nn.Parameter(factor * weight)
        outputs.append(built(x) - x - built.norm.bias.reshape(1, -1, 1, 1))
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], -outputs[0])


def test_published_setting() -> None:
    built = CompactGeneralizedNonLocal(1024)
    assert (built.width, built.core.num_groups, built.core.powers) == (512, 8, (1,))
    assert CompactGeneralizedNonLocal(64, kernel="gaussian").core.powers == (0, 1, 2, 3)
    assert built.conv_out.weight.shape == (1024, 64, 1, 1)


def test_block_is_the_identity_at_the_start() -> None:
    x = torch.randn(2, 16, 5, 7)
    for kernel in ("dot_product", "gaussian"):
        assert torch.equal(CompactGeneralizedNonLocal(16, kernel=kernel)(x), x)


def test_cost_is_linear_in_positions_and_channels() -> None:
    built = CompactGeneralizedNonLocal(64, kernel="gaussian", order=5)
    assert built.macs(64, 64) == 4 * built.macs(32, 32)
    assert built.macs(8, 8) == 64 * (3 * 64 * 32 + 64 * 32 // 8 + 2 * 32 * 6)


@pytest.mark.parametrize(
    "settings",
    [{"kernel": "gaussian"}, {"kernel": "gaussian", "order": 0, "num_groups": 1}, {"reduction": 1, "scale": True}],
)
def test_conformance_of_settings(settings: dict[str, Any]) -> None:
    results = checks.run_checks(
        CompactGeneralizedNonLocal,
        only=("shapes", "macs", "macs_batch", "core", "parameter_gradients", "gradient_claim", "autocast", "compile"),
        settings=settings,
    )
    assert results == dict.fromkeys(results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": "cosine"}, "CompactGeneralizedNonLocal: expected kernel in .*, got 'cosine'"),
        ({"order": -1}, "CompactGeneralizedNonLocal: expected order >= 0, got -1"),
        ({"gamma": 0.0}, "CompactGeneralizedNonLocal: expected a finite gamma > 0, got 0.0"),
        ({"gamma": float("nan")}, "CompactGeneralizedNonLocal: expected a finite gamma > 0, got nan"),
        ({"num_groups": 0}, "CompactGeneralizedNonLocal: expected num_groups >= 1 that divides 16, got 0"),
        ({"num_groups": 3}, "CompactGeneralizedNonLocal: expected num_groups >= 1 that divides 16, got 3"),
        ({"reduction": 3}, "CompactGeneralizedNonLocal: expected channels divisible by the reduction 3, got 32"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompactGeneralizedNonLocal(32, **settings)
