"""Criss-cross attention against the paper's equations and mmsegmentation."""

from __future__ import annotations

from typing import Any

import golden
import oracle_criss_cross
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from operators import checks
from operators.criss_cross import CrissCross

SIZES = [(1, 1), (1, 5), (5, 1), (3, 4)]


def construct(**settings: Any) -> CrissCross:
    operator: CrissCross = checks.construct(CrissCross, 4, reduction=2, **settings).double()
    return operator


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("recurrence", [1, 2])
def test_operator_is_equations_1_and_2(recurrence: int, size: tuple[int, int]) -> None:
    operator = construct(recurrence=recurrence)
    x = checks.sample(2, 4, *size).requires_grad_()
    y = operator(x)
    probe = torch.randn_like(y)
    gradients = torch.autograd.grad((y * probe).sum(), [x, *operator.parameters()])
    leaf = x.detach().clone().requires_grad_()
    tensors = {name: value.detach().clone().requires_grad_() for name, value in operator.named_parameters()}
    expected, _ = oracle_criss_cross.operator(leaf, tensors, recurrence)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    wanted = torch.autograd.grad((expected * probe).sum(), [leaf, *tensors.values()])
    for actual, gradient in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-9, atol=1e-9)


def test_head_is_mmsegmentations() -> None:
    head = golden.load("cc")
    state = head["state_dict"]
    operator = CrissCross(32, recurrence=head["config"]["recurrence"])
    own = {"gamma": state["cca.gamma.scale"]}
    for name in ("query", "key", "value"):
        own |= {f"{name}.{kind}": state[f"cca.{name}_conv.{kind}"] for kind in ("weight", "bias")}
    operator.load_state_dict(own)
    x = head["inputs"][0]
    y = golden.conv_bn_relu(operator(golden.conv_bn_relu(x, state, "convs.0")), state, "convs.1")
    y = golden.conv_bn_relu(torch.cat((x, y), 1), state, "conv_cat")
    torch.testing.assert_close(golden.classify(y, state), head["logits"], rtol=1e-4, atol=1e-4)


def test_initialisation_is_the_identity() -> None:
    x = torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(CrissCross(16)(x), x, rtol=0, atol=0)


def test_centre_is_counted_once() -> None:
    operator = construct(recurrence=1)
    for parameter in operator.query.parameters():
        torch.nn.init.zeros_(parameter)
    weights = operator.attention(checks.sample(1, 4, 5, 7), (2, 3))[0, 0]
    expected = torch.zeros(5, 7).double()
    expected[2], expected[:, 3] = 1 / 11, 1 / 11
    torch.testing.assert_close(weights, expected)


def test_passes_share_their_weights() -> None:
    once, twice = construct(recurrence=1), construct(recurrence=2)
    twice.load_state_dict(once.state_dict())
    x = checks.sample(2, 4, 5, 7)
    torch.testing.assert_close(twice(x), once(once(x)), rtol=0, atol=0)


def test_one_pass_reaches_row_and_column_two_reach_all() -> None:
    x = checks.sample(1, 4, 5, 7)
    for recurrence in (1, 2):
        operator = construct(recurrence=recurrence)
        for row in range(5):
            for column in range(7):
                perturbed = x.clone()
                perturbed[:, :, row, column] += 1
                moved = bool((operator(perturbed) - operator(x))[0, :, 2, 3].abs().max() > 0)
                assert moved == (recurrence == 2 or row == 2 or column == 3)


@pytest.mark.parametrize("recurrence", [1, 2, 3])
def test_attention_is_the_product_of_the_passes(recurrence: int) -> None:
    operator = construct(recurrence=recurrence)
    x = checks.sample(2, 4, 3, 4)
    _, product = oracle_criss_cross.operator(x, dict(operator.named_parameters()), recurrence)
    weights = operator.attention(x, (1, 2))
    torch.testing.assert_close(weights, product[:, 1 * 4 + 2].reshape(2, 1, 3, 4), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(weights.sum((1, 2, 3)), torch.ones(2).double())
    reached = weights[0, 0] > 0
    if recurrence == 1:
        assert not reached[[0, 0, 0, 2, 2, 2], [0, 1, 3, 0, 1, 3]].any()
    else:
        assert reached.all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("recurrence", [1, 2])
def test_macs_are_counted(recurrence: int, size: tuple[int, int]) -> None:
    operator = construct(recurrence=recurrence)
    with FlopCounterMode(display=False) as counter:
        operator(checks.sample(1, 4, *size))
    assert counter.get_total_flops() == 2 * operator.macs(*size)


@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_finite_where_the_mask_leaves_one_entry(size: tuple[int, int]) -> None:
    operator = construct()
    operator(checks.sample(2, 4, *size)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in operator.parameters())


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="CrissCross: expected channels divisible by the reduction 8, got 12"):
        CrissCross(12)
    with pytest.raises(ValueError, match="CrissCross: expected recurrence >= 1, got 0"):
        CrissCross(16, recurrence=0)
