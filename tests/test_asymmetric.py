"""Asymmetric non-local attention on one level and on two, against its equations and mmsegmentation."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import against_oracle
import golden
import oracle_asymmetric as oracle
import pytest
import torch
from torch import Tensor

from operators import PairOperator, checks
from operators.asymmetric import AsymmetricFusion, AsymmetricPyramid
from operators.checks.products import product_counter

IMPLEMENTATIONS = ["reference", "fused"]


def pyramid(channels: int = 8, **settings: Any) -> AsymmetricPyramid:
    operator: AsymmetricPyramid = checks.construct(AsymmetricPyramid, channels, **settings).double()
    return operator


def fusion(channels: int = 8, low_channels: int = 6, **settings: Any) -> AsymmetricFusion:
    build: Any = partial(AsymmetricFusion, low_channels=low_channels)
    operator: AsymmetricFusion = checks.construct(build, channels, **settings).double()
    return operator


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("settings", [{}, {"share": False}, {"scale": False}])
def test_pyramid_is_the_equation(settings: dict[str, bool], implementation: str) -> None:
    bins = (1, 2, 4)
    expected = partial(oracle.pyramid, bins=bins, scale=settings.get("scale", True))
    operator = pyramid(4, bins=bins, implementation=implementation, **settings)
    against_oracle.assert_oracle(operator, expected, checks.sample(2, 4, 3, 5))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale", [True, False])
def test_fusion_is_the_equation(scale: bool, implementation: str) -> None:
    bins = (1, 2, 4)
    operator = fusion(4, 6, bins=bins, scale=scale, implementation=implementation)
    high, low = checks.sample(2, 4, 3, 5), checks.sample(2, 6, 5, 6, seed=2)
    against_oracle.assert_oracle(operator, partial(oracle.fusion, bins=bins, scale=scale), high, low)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_head_is_mmsegmentations(implementation: Any) -> None:
    head = golden.load("ann")
    state, config = head["state_dict"], head["config"]
    low, high = head["inputs"]
    width, bins = config["project_channels"], config["key_pool_scales"]
    fuse = AsymmetricFusion(64, 32, width=width, bins=bins, implementation=implementation).eval()
    context = AsymmetricPyramid(32, width=width, bins=bins, implementation=implementation).eval()
    fuse.load_state_dict(_renamed(state, "fusion", share=False))
    context.load_state_dict(_renamed(state, "context", share=True))
    y = context(golden.conv_bn_relu(fuse(high, low), state, "bottleneck"))
    torch.testing.assert_close(golden.classify(y, state), head["logits"], rtol=0, atol=1e-4)


def _renamed(state: dict[str, Tensor], block: str, *, share: bool) -> dict[str, Tensor]:
    parts = ("key", "value", "out") if share else ("query", "key", "value", "out")
    names = {f"{block}.stages.0.{part}_project": f"stage.{part}" for part in parts}
    names[f"{block}.bottleneck"] = "fuse"
    return against_oracle.rename(state, names)


def test_published_pyramid_has_110_anchors() -> None:
    stage = AsymmetricPyramid(512).stage
    assert (stage.anchors, stage.width) == (110, 256)
    assert stage.pool(torch.zeros(1, 2, 97, 97)).shape == (1, 2, 110)


def test_nothing_is_read_at_initialisation() -> None:
    x, low = torch.randn(2, 8, 5, 7), torch.randn(2, 6, 3, 4)
    assert not AsymmetricPyramid(8).stage(x, x).any()
    assert not AsymmetricFusion(8, 6).stage(x, low).any()


def test_attention_is_what_the_output_reads() -> None:
    operator = pyramid()
    x = checks.sample(2, 8, 5, 7)
    captured: list[Tensor] = []
    operator.core.register_forward_hook(lambda module, inputs, output: captured.append(output))
    operator(x)
    weights = operator.attention(x, (3, 2))
    torch.testing.assert_close(weights.sum((1, 2, 3)), torch.ones(2).double())
    read = (weights * operator.stage.value(x)).sum((2, 3))
    torch.testing.assert_close(read, captured[0][:, :, 3 * 7 + 2])


@pytest.mark.parametrize("settings", [{"share": False}, {"width": 12, "bins": [2, 5]}])
def test_conformance_of_settings(settings: dict[str, Any]) -> None:
    for implementation in IMPLEMENTATIONS:
        results = checks.run_checks(
            AsymmetricPyramid,
            only=("shapes", "macs", "attention", "core", "parameter_gradients"),
            settings={**settings, "implementation": implementation},
        )
        assert results == dict.fromkeys(results)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("sizes", [((5, 7), (5, 7)), ((5, 7), (11, 13)), ((1, 9), (3, 1)), ((1, 1), (1, 1))])
def test_fusion_at_any_pair_of_sizes(sizes: tuple[tuple[int, int], tuple[int, int]], implementation: str) -> None:
    operator = fusion(implementation=implementation)
    high, low = checks.sample(1, 8, *sizes[0]), checks.sample(1, 6, *sizes[1])
    with torch.no_grad(), product_counter() as counter:
        y = operator(high, low)
    assert y.shape == high.shape and y.isfinite().all()
    assert counter.get_total_flops() == 2 * operator.macs(*sizes)


def test_fusion_reads_both_levels_everywhere() -> None:
    operator = fusion()
    high, low = checks.sample(1, 8, 5, 7), checks.sample(1, 6, 9, 3)
    base = operator(high, low)
    moved = low.clone()
    moved[:, :, 8, 2] += 1
    assert (operator(high, moved) - base).abs().amax((0, 1)).gt(1e-12).all()
    assert not (operator(-high, low) - base).eq(0).any()


def test_fusion_keeps_the_contract_of_operators() -> None:
    operator = fusion().float()
    high, low = checks.sample(3, 8, 5, 7).float(), checks.sample(3, 6, 9, 3).float()
    kept = high.clone(), low.clone()
    y = operator(high, low)
    assert isinstance(operator, PairOperator)
    assert torch.equal(high, kept[0]) and torch.equal(low, kept[1])
    for other in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(other(high, low), y)
    torch.testing.assert_close(operator(high[1:2], low[1:2]), y[1:2])
    channels_last = [x.contiguous(memory_format=torch.channels_last) for x in (high, low)]
    torch.testing.assert_close(operator(*channels_last), y)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(operator(high, low).float(), y, rtol=0.1, atol=0.1)
    compiled = torch.compile(operator, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(high, low), y)


@pytest.mark.parametrize(
    ("high", "low"), [((2, 8, 5, 7), (2, 8, 5, 7)), ((2, 6, 5, 7), (2, 6, 5, 7)), ((2, 8, 5, 7), (1, 6, 5, 7))]
)
def test_fusion_names_the_maps_it_expected(high: tuple[int, ...], low: tuple[int, ...]) -> None:
    message = r"AsymmetricFusion: expected \(B, 8, H, W\) and \(B, 6, H', W'\), got "
    with pytest.raises(ValueError, match=message):
        fusion()(torch.ones(high), torch.ones(low))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bins": ()}, r"AnchorAttention: expected bins >= 1, got \(\)"),
        ({"bins": (0, 1)}, r"AnchorAttention: expected bins >= 1, got \(0, 1\)"),
        ({"width": 0}, "expected width >= 1, got 0"),
        ({"implementation": "fast"}, "ScaledAttention: expected implementation in .*, got 'fast'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    for build in (AsymmetricPyramid, partial(AsymmetricFusion, low_channels=6)):
        with pytest.raises(ValueError, match=message):
            build(8, **settings)


def test_channels_have_to_be_positive_and_even_without_a_width() -> None:
    with pytest.raises(ValueError, match="AsymmetricPyramid: expected channels divisible by 2, or a width, got 7"):
        AsymmetricPyramid(7)
    with pytest.raises(ValueError, match="AsymmetricFusion: expected low_channels >= 1, got 0"):
        AsymmetricFusion(8, 0)
    assert AsymmetricPyramid(7, width=3).eval()(torch.ones(1, 7, 2, 3)).shape == (1, 7, 2, 3)
