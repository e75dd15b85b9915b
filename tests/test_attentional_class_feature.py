"""Attentional class feature against its equations."""

from __future__ import annotations

from typing import Any

import oracle_attentional_class_feature as oracle
import pytest
import torch
from against_oracle import assert_same

from operators import checks
from operators.attentional_class_feature import AttentionalClassFeature, ClassAttention

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["reference", "fused"])


def block(channels: int = 8, **settings: Any) -> AttentionalClassFeature:
    operator: AttentionalClassFeature = checks.construct(AttentionalClassFeature, channels, **settings).double()
    return operator


@IMPLEMENTATIONS
@pytest.mark.parametrize("size", [(3, 5), (1, 1)])
@pytest.mark.parametrize("settings", [{}, {"width": 3, "num_classes": 1}, {"width": 6, "num_classes": 7}])
def test_block_is_the_equation(settings: dict[str, Any], size: tuple[int, int], implementation: str) -> None:
    operator = checks.construct(AttentionalClassFeature, 4, implementation=implementation, **settings)
    assert_same(operator, oracle.block, checks.sample(2, 4, *size))


@IMPLEMENTATIONS
def test_pixels_of_one_class_read_their_mean(implementation: str) -> None:
    core = ClassAttention(4, fused=implementation == "fused").double()
    torch.nn.init.eye_(core.refine.weight[:, :, 0])
    x = checks.sample(2, 4, 10)
    logits = torch.full((2, 3, 10), -1e3).double()
    logits[:, 0, :6], logits[:, 1, 6:] = 0, 0
    means = [part.mean(2, keepdim=True).expand_as(part) for part in (x[..., :6], x[..., 6:])]
    expected = torch.cat(means, 2)
    torch.testing.assert_close(core(x, logits), expected)


@IMPLEMENTATIONS
def test_a_class_that_is_nowhere_is_no_division_by_zero(implementation: str) -> None:
    operator = block(implementation=implementation, num_classes=3).float().train()
    with torch.no_grad():
        assert operator.classes.bias is not None
        operator.classes.bias[0] = -1e4
    x = checks.sample(2, 8, 5, 7, dtype=torch.float32).requires_grad_()
    assert not operator.responsibilities(x)[:, 0].any()
    y = operator(x)
    assert y.isfinite().all()
    for gradient in torch.autograd.grad(y.square().sum(), [x, *operator.parameters()]):
        assert gradient.isfinite().all()


def test_logits_count_by_their_differences_alone() -> None:
    core = ClassAttention(4, fused=False).double()
    x, logits = checks.sample(2, 4, 10), checks.sample(2, 3, 10, seed=2)
    torch.testing.assert_close(core(x, logits + checks.sample(2, 1, 10, seed=3)), core(x, logits))
    assert (core(x, 2 * logits) - core(x, logits)).abs().amax() > 1e-3


def test_auxiliary_loss_and_block_both_reach_the_classifier() -> None:
    operator = block(num_classes=3).train()
    x = checks.sample(2, 8, 5, 7)
    y, logits = operator.forward_with_auxiliary(x)
    torch.testing.assert_close(logits["classes"], operator.classes(x))
    for output in (y, logits["classes"]):
        (gradient,) = torch.autograd.grad(output.square().sum(), operator.classes.weight, retain_graph=True)
        assert gradient.abs().amax() > 1e-6


@IMPLEMENTATIONS
def test_attention_is_what_the_output_reads(implementation: str) -> None:
    operator = block(num_classes=3, implementation=implementation)
    x = checks.sample(2, 8, 5, 7)
    captured: list[tuple[torch.Tensor, torch.Tensor]] = []
    operator.core.register_forward_hook(lambda module, inputs, output: captured.append((inputs[0], output)))
    operator(x)
    ((pixels, read),) = captured
    weights = operator.attention(x, (3, 2))
    torch.testing.assert_close(weights.sum((1, 2, 3)), torch.ones(2).double())
    mean = (weights.flatten(2) * pixels).sum(2, keepdim=True)
    torch.testing.assert_close(operator.core.refine(mean)[:, :, 0], read[:, :, 3 * 7 + 2])


def test_responsibilities_are_the_coarse_probabilities() -> None:
    operator = block(num_classes=3)
    x = checks.sample(2, 8, 5, 7)
    _, logits = operator.forward_with_auxiliary(x)
    torch.testing.assert_close(operator.responsibilities(x), torch.softmax(logits["classes"], 1))
    with pytest.raises(IndexError, match="AttentionalClassFeature: expected stage 0 or -1, got 1"):
        operator.responsibilities(x, 1)


def test_cost_at_the_size_of_hamburgers_comparison() -> None:
    with torch.device("meta"):
        plain = AttentionalClassFeature(512, num_classes=19)
        fused = AttentionalClassFeature(512, num_classes=19, implementation="fused")
    convolutions = 4 * 512**2 + 19 * 512
    assert sum(value.numel() for value in plain.parameters() if value.ndim > 1) == convolutions
    reading = 2 * 128**2 * 19 * 512
    assert plain.macs(128, 128) == 128**2 * convolutions + reading
    assert plain.macs(128, 128) - fused.macs(128, 128) == (128**2 - 19) * 512**2


@pytest.mark.parametrize("settings", [{"width": 12, "num_classes": 1}, {"width": 40}])
def test_conformance_of_settings(settings: dict[str, Any]) -> None:
    for implementation in ("reference", "fused"):
        results = checks.run_checks(
            AttentionalClassFeature,
            only=("shapes", "macs", "attention", "responsibilities", "core", "auxiliary"),
            settings={**settings, "implementation": implementation},
        )
        assert results == dict.fromkeys(results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "num_classes >= 1, got 0"),
        ({"width": 0}, "width >= 1, got 0"),
        ({"implementation": "fast"}, "implementation in .*, got 'fast'"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"AttentionalClassFeature: expected {message}"):
        AttentionalClassFeature(8, **{"num_classes": 3, **settings})
