"""The two-dimensional selective scan against its recurrence, and the scan of logarithmic depth by itself."""

from __future__ import annotations

from typing import Any

import oracle_selective_scan as oracle
import pytest
import torch
from against_oracle import assert_same
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from operators import checks
from operators.selective_scan import SelectiveScan2D, cross_merge, cross_scan, scan


def operator(channels: int = 8, **settings: Any) -> SelectiveScan2D:
    built = checks.construct(SelectiveScan2D, channels, **settings)
    assert isinstance(built, SelectiveScan2D)
    return built.double()


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (3, 4)),
        ({}, (2, 1)),
        ({}, (1, 5)),
        ({"num_states": 3, "rank": 2}, (3, 2)),
        ({"expansion": 2, "num_states": 2}, (2, 3)),
    ],
)
def test_block_is_the_papers(settings: dict[str, int], size: tuple[int, int]) -> None:
    assert_same(operator(4, **settings), oracle.block, checks.sample(2, 4, *size))


@pytest.mark.parametrize("length", [2, 3, 4, 5, 7, 8, 31, 33, 100])
def test_scan_is_the_recurrence(length: int) -> None:
    decay, step = (checks.sample(2, 3, length, seed=seed).sigmoid().requires_grad_() for seed in (1, 2))
    state, states = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(length):
        state = decay[..., t] * state + step[..., t]
        states.append(state)
    expected, got = torch.stack(states, -1), scan(decay, step)
    torch.testing.assert_close(got, expected)
    probe = checks.sample(2, 3, length, seed=3)
    for a, b in zip(
        torch.autograd.grad((got * probe).sum(), (decay, step)),
        torch.autograd.grad((expected * probe).sum(), (decay, step)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_one_pixel_has_no_past() -> None:
    built, x = operator(4), checks.sample(2, 4, 1, 1)
    expected = [oracle.block([[image[:, 0, 0]]], built.state_dict())[0][0] for image in x]
    torch.testing.assert_close(built(x)[:, :, 0, 0], torch.stack(expected))


def test_scan_of_vanishing_and_of_lasting_decays_is_finite() -> None:
    step = checks.sample(5000, dtype=torch.float32)
    torch.testing.assert_close(scan(torch.zeros(5000), step), step)
    torch.testing.assert_close(scan(torch.ones(5000), step), step.double().cumsum(0).float(), rtol=1e-4, atol=1e-4)
    tiny = torch.full((5000,), 1e-30).requires_grad_()
    scan(tiny, step).sum().backward()
    assert tiny.grad is not None and tiny.grad.isfinite().all()


def test_scan_is_logarithmically_deep() -> None:
    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.operations += 1
            return func(*args, **(kwargs or {}))

    def operations(length: int) -> int:
        with Count() as count:
            scan(torch.ones(length), torch.ones(length))
        return count.operations

    assert operations(4096) - operations(2048) == operations(256) - operations(128)
    assert operations(4225) < 600


def test_scans_go_along_rows_and_columns_and_back() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    expected = [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]]
    assert cross_scan(x)[0, :, 0].tolist() == expected
    assert torch.equal(cross_merge(cross_scan(x), 2, 3), 4 * x)


def test_each_direction_reads_the_past_of_its_own_order() -> None:
    built, x = operator(), checks.sample(1, 8, 3, 4)
    sequence, rate, enter, leave = built.project(x)
    for place in (0, 5, 11):
        moved = sequence.clone()
        moved[..., place] += 1
        change = (
            (built.core(moved, rate, enter, leave) - built.core(sequence, rate, enter, leave)).abs().amax((0, 1, 2))
        )
        assert change[:place].eq(0).all() and change[place:].gt(0).all()


@pytest.mark.parametrize("settings", [{}, {"num_states": 3, "expansion": 2}])
def test_attention_is_what_the_scans_read(settings: dict[str, int]) -> None:
    built, x = operator(**settings), checks.sample(2, 8, 4, 5)
    merged: list[Tensor] = []
    built.out_norm.register_forward_hook(lambda module, inputs, output: merged.append(inputs[0]))
    built(x)
    features = built.features(x)
    for row, column in ((0, 0), (3, 4), (1, 3)):
        read = (built.attention(x, (row, column)) * features).sum((2, 3))
        torch.testing.assert_close(read, merged[0][:, row, column])


def test_published_sizes_and_start() -> None:
    built = SelectiveScan2D(512)
    assert (built.width, built.num_states, built.rank) == (512, 1, 32)
    delta = built.core.steps(torch.zeros(1, 4, 512, 1))
    assert delta.min() >= 0.9e-3 and delta.max() <= 1.1e-1
    assert torch.equal(SelectiveScan2D(16, num_states=4).core.log_decay[3, 5], torch.arange(1.0, 5).log())
    assert built.core.skip.eq(1).all()


@pytest.mark.parametrize("settings", [{"expansion": 2, "num_states": 4}, {"rank": 3}])
def test_conformance_of_settings(settings: dict[str, Any]) -> None:
    results = checks.run_checks(
        SelectiveScan2D,
        only=("shapes", "macs", "attention", "core", "parameter_gradients", "autocast", "state_dict"),
        settings=settings,
    )
    assert results == dict.fromkeys(results)


def test_recurrence_keeps_single_precision_under_autocast() -> None:
    built = operator().float()
    with torch.autocast("cpu", torch.bfloat16):
        sequence, rate, enter, leave = built.project(checks.sample(1, 8, 3, 4, dtype=torch.float32))
        assert rate.dtype == torch.bfloat16
        assert built.core(sequence, rate, enter, leave).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expansion": 0}, "SelectiveScan2D: expected expansion >= 1, got 0"),
        ({"num_states": 0}, "SelectiveScan2D: expected num_states >= 1, got 0"),
        ({"rank": 0}, "SelectiveScan2D: expected rank >= 1, got 0"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectiveScan2D(8, **settings)
