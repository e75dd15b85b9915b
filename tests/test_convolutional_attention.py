"""Large kernel and multi-scale convolutional attention against their equations, and how far they reach."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle_convolutional_attention as oracle
import pytest
import torch
from against_oracle import assert_same

from operators import AttentionOperator, checks
from operators.large_kernel import LargeKernel
from operators.multi_scale_convolutional import MultiScaleConvolutional

BOTH = [LargeKernel, MultiScaleConvolutional]


@pytest.mark.parametrize("settings", [{}, {"local_size": 3, "kernel_size": 5, "dilation": 2}])
def test_large_kernel_is_the_papers(settings: dict[str, int]) -> None:
    gate = partial(oracle.large_kernel_gate, dilation=settings.get("dilation", 3))
    built = checks.construct(LargeKernel, 3, **settings)
    assert_same(built, partial(oracle.block, gate=gate), checks.sample(2, 3, 5, 7))


@pytest.mark.parametrize("settings", [{}, {"local_size": 3, "strip_sizes": [1, 3]}])
def test_multi_scale_is_the_papers(settings: dict[str, Any]) -> None:
    gate = partial(oracle.multi_scale_gate, strip_sizes=settings.get("strip_sizes", (7, 11, 21)))
    built = checks.construct(MultiScaleConvolutional, 3, **settings)
    assert_same(built, partial(oracle.block, gate=gate), checks.sample(2, 3, 5, 7))


@pytest.mark.parametrize(("operator", "radius"), [(LargeKernel, 11), (MultiScaleConvolutional, 12)])
def test_pixel_reaches_its_window_and_no_further(operator: type[AttentionOperator], radius: int) -> None:
    built = checks.construct(operator, 8).double()
    x = checks.sample(1, 8, 31, 33)
    moved = x.clone()
    moved[:, :, 15, 16] += checks.sample(8, seed=2)
    with torch.no_grad():
        change = (built(moved) - built(x)).abs().amax((0, 1)).gt(1e-13)
    reached = change.nonzero().aminmax(dim=0)
    assert reached.min.tolist() == [15 - radius, 16 - radius]
    assert reached.max.tolist() == [15 + radius, 16 + radius]


def test_large_kernel_sees_every_pixel_of_its_window() -> None:
    gate = checks.construct(LargeKernel, 4).core.double()
    x = torch.zeros(1, 4, 23, 23, dtype=torch.float64).requires_grad_()
    gate.distant(gate.local(x))[:, :, 11, 11].sum().backward()
    assert x.grad is not None and x.grad.ne(0).all()


def test_published_kernels() -> None:
    large, scales = LargeKernel(64).core, MultiScaleConvolutional(64).core
    assert large.distant.weight.shape == (64, 1, 7, 7) and large.distant.dilation == (3, 3)
    assert [strip[0].weight.shape[3] for strip in scales.strips] == [7, 11, 21]
    assert [strip[1].weight.shape[2] for strip in scales.strips] == [7, 11, 21]


@pytest.mark.parametrize("operator", BOTH)
def test_scale_weighs_the_attention_and_the_normalised_map(operator: Any) -> None:
    built = operator(8).eval()
    assert built.scale.eq(1e-2).all()
    with torch.no_grad():
        built.leave.weight.zero_()
        x = torch.randn(2, 8, 5, 7)
        torch.testing.assert_close(built(x), x + 1e-2 * built.norm(x))
        built.scale.zero_()
        assert torch.equal(built(x), x)


@pytest.mark.parametrize("operator", BOTH)
def test_gate_is_linear_in_what_it_is_computed_from(operator: Any) -> None:
    core = operator(8).double().core
    x = checks.sample(2, 8, 5, 7)
    torch.testing.assert_close(core(3 * x), 9 * core(x))


@pytest.mark.parametrize("operator", BOTH)
def test_cost_counts_every_tap(operator: Any) -> None:
    taps = {LargeKernel: 25 + 49, MultiScaleConvolutional: 25 + 2 * (7 + 11 + 21)}[operator]
    assert operator(16).macs(5, 7) == 35 * 16 * (3 * 16 + taps)


@pytest.mark.parametrize(
    ("operator", "settings", "message"),
    [
        (LargeKernel, {"kernel_size": 6}, "LargeKernel: expected kernel_size >= 1 and odd, got 6"),
        (LargeKernel, {"local_size": -1}, "LargeKernel: expected local_size >= 1 and odd, got -1"),
        (LargeKernel, {"dilation": 0}, "LargeKernel: expected dilation >= 1, got 0"),
        (
            MultiScaleConvolutional,
            {"local_size": 2},
            "MultiScaleConvolutional: expected local_size >= 1 and odd, got 2",
        ),
        (MultiScaleConvolutional, {"strip_sizes": (7, 8)}, "expected strip_sizes >= 1 and odd, got 8"),
        (MultiScaleConvolutional, {"strip_sizes": ()}, "MultiScaleConvolutional: expected strip_sizes, got none"),
    ],
)
def test_arguments_out_of_range(operator: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        operator(8, **settings)
