"""External attention against its equations, and the memories that the authors' code ties by accident."""

from __future__ import annotations

import math
from typing import Any

import oracle_external_attention as oracle
import pytest
import torch
from against_oracle import assert_same

from operators import checks
from operators.external_attention import ExternalAttention

IMPLEMENTATIONS = ["reference", "fused"]
MEMORIES = ["independent", "equal", "shared"]


def operator(channels: int = 6, **settings: Any) -> ExternalAttention:
    built = checks.construct(ExternalAttention, channels, **{"num_slots": 3, **settings}).double()
    assert isinstance(built, ExternalAttention)
    return built


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("memories", MEMORIES)
def test_block_is_the_papers(memories: str, implementation: str) -> None:
    built = operator(memories=memories, implementation=implementation)
    assert_same(built, oracle.block, checks.sample(2, 6, 3, 4))


def test_memories_have_64_slots() -> None:
    key, value = ExternalAttention(16).core.pair()
    assert (key.shape, value.shape) == ((64, 16), (16, 64))


def test_independent_memories_are_drawn_apart() -> None:
    core = ExternalAttention(256, num_slots=32).core
    assert core.value is not None
    assert float(core.key.detach().std()) == pytest.approx(math.sqrt(2 / 32), rel=0.05)
    assert float(core.value.detach().std()) == pytest.approx(math.sqrt(2 / 256), rel=0.05)
    both = torch.stack((core.key.flatten(), core.value.t().flatten())).detach()
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1


@pytest.mark.parametrize("move", [lambda core: core, lambda core: core.double()])
def test_equal_memories_are_equal_at_the_start_and_apart_ever_after(move: Any) -> None:
    core = move(ExternalAttention(256, num_slots=32, memories="equal").core)
    assert core.value is not None
    assert torch.equal(core.value, core.key.t())
    assert float(core.key.detach().std()) == pytest.approx(math.sqrt(2 / 256), rel=0.05)
    with torch.no_grad():
        core.value.add_(1)
    assert not torch.equal(core.value, core.key.t())


@pytest.mark.parametrize("move", [lambda core: core, lambda core: core.double()])
def test_shared_memories_stay_one(move: Any) -> None:
    core = move(ExternalAttention(8, num_slots=3, memories="shared").core)
    assert [name for name, _ in core.named_parameters()] == ["key"]
    with torch.no_grad():
        core.key.add_(1)
    key, value = core.pair()
    assert torch.equal(value, key.t())


def test_normalisation_is_over_positions_then_over_slots() -> None:
    built, similarity = operator(), checks.sample(2, 3, 12)
    weights = built.core.normalise(similarity)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 12).double())
    over_slots = torch.softmax(similarity, dim=1)
    assert (weights - over_slots).abs().max() > 0.01
    torch.testing.assert_close(built.core.normalise(similarity + checks.sample(2, 3, 1, seed=2)), weights)


def test_pixel_that_no_slot_attends_to_reads_nothing() -> None:
    similarity = torch.zeros(1, 3, 2, dtype=torch.float64)
    similarity[:, :, 0] = -1e4
    weights = operator().core.normalise(similarity)
    assert not weights[:, :, 0].any()
    torch.testing.assert_close(weights[:, :, 1], torch.full((1, 3), 1 / 3).double())
    built = operator()
    with torch.no_grad():
        built.core.key.mul_(1e5)
    shares = built.responsibilities(checks.sample(1, 6, 3, 4))
    torch.testing.assert_close(shares.sum(1), torch.ones(1, 3, 4).double())
    assert ((shares - 1 / 3).abs() < 1e-12).all(1).any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bias_of_the_first_convolution_cancels(implementation: str) -> None:
    built, x = operator(implementation=implementation), checks.sample(2, 6, 3, 4)
    before = built(x)
    with torch.no_grad():
        built.conv_in.bias.add_(1)
    torch.testing.assert_close(built(x), before)


def test_output_is_rectified_after_the_residual() -> None:
    built, x = operator(), checks.sample(2, 6, 3, 4)
    with torch.no_grad():
        built.norm.weight.zero_()
        built.norm.bias.zero_()
    torch.testing.assert_close(built(x), x.relu())


def test_responsibilities_weigh_the_slots_that_are_read() -> None:
    built, x = operator(), checks.sample(2, 6, 3, 4)
    expected = built.core(built.conv_in(x).flatten(2)).reshape(x.shape)
    _, value = built.core.pair()
    for stage in (0, -1):
        read = torch.einsum("ck,bkhw->bchw", value, built.responsibilities(x, stage))
        torch.testing.assert_close(read, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(IndexError, match="ExternalAttention: expected stage 0 or -1, got 1"):
        built.responsibilities(x, 1)


def test_fused_has_no_convolution_of_the_pixels() -> None:
    reference, fused = (ExternalAttention(512, implementation=implementation) for implementation in IMPLEMENTATIONS)
    assert reference.macs(64, 64) == 4096 * (2 * 512**2 + 2 * 512 * 64)
    assert fused.macs(64, 64) == 4096 * 2 * 512 * 64 + 64 * 512 * 1025
    assert 7 * fused.macs(64, 64) < reference.macs(64, 64)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("settings", [{"memories": "shared", "num_slots": 1}, {"memories": "equal", "num_slots": 7}])
def test_conformance_of_settings(settings: dict[str, Any], implementation: str) -> None:
    results = checks.run_checks(
        ExternalAttention,
        only=("shapes", "macs", "macs_batch", "core", "responsibilities", "parameter_gradients", "autocast"),
        settings={**settings, "implementation": implementation},
    )
    assert results == dict.fromkeys(results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_slots": 0}, "ExternalAttention: expected num_slots >= 1, got 0"),
        ({"memories": "tied"}, "ExternalAttention: expected memories in .*, got 'tied'"),
        ({"implementation": "fast"}, "ExternalAttention: expected implementation in .*, got 'fast'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExternalAttention(8, **settings)
