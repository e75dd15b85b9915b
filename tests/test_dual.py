"""Dual attention against the paper's equations, mmsegmentation, and its own fused form."""

from __future__ import annotations

import golden
import oracle_dual
import pytest
import torch
from torch import Tensor, nn

from operators import checks
from operators.dual import ChannelAttention, DualAttention, PositionAttention


def positions(x: Tensor) -> list[list[float]]:
    """`(1, C, H, W)` as positions x channels."""
    rows: list[list[float]] = x[0].flatten(1).t().tolist()
    return rows


def affine(conv: nn.Conv2d) -> tuple[list[list[float]], list[float]]:
    return conv.weight.flatten(1).tolist(), conv.bias.tolist()


def test_position_branch_is_equations_1_and_2() -> None:
    operator = checks.construct(DualAttention, 16, reduction=4).position.double()
    x = checks.sample(1, 16, 3, 5)
    expected = oracle_dual.position_attention(
        positions(x),
        affine(operator.query),
        affine(operator.key),
        affine(operator.value),
        operator.gamma.item(),
    )
    torch.testing.assert_close(positions(operator(x)), expected, rtol=1e-10, atol=1e-10)


def test_channel_branch_is_equations_3_and_4_with_inverted_energies() -> None:
    operator = ChannelAttention(8).double()
    operator.gamma.data.fill_(0.7)
    x = checks.sample(1, 8, 2, 3)
    expected = oracle_dual.channel_attention(positions(x), operator.gamma.item())
    torch.testing.assert_close(positions(operator(x)), expected, rtol=1e-10, atol=1e-10)


def test_least_similar_channel_weighs_most() -> None:
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]]])
    assert ChannelAttention(3).core.weights(x)[0, 0].argmax() == 2


def test_output_is_the_sum_of_both_branches() -> None:
    operator = checks.construct(DualAttention, 16)
    x = checks.sample(2, 16, 5, 7, dtype=torch.float32)
    torch.testing.assert_close(operator(x), operator.position(x) + operator.channel(x))


def test_initialisation_doubles_the_input() -> None:
    x = checks.sample(2, 16, 5, 7, dtype=torch.float32)
    torch.testing.assert_close(DualAttention(16)(x), 2 * x, rtol=0, atol=0)


def test_attention_is_the_row_that_the_output_reads() -> None:
    operator = checks.construct(DualAttention, 16).position.double()
    x = checks.sample(1, 16, 3, 5)
    weights = operator.attention(x, (1, 2))
    read = (weights * operator.value(x)).sum((2, 3))
    torch.testing.assert_close(weights.sum(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(operator(x)[:, :, 1, 2], x[:, :, 1, 2] + operator.gamma * read)


def test_auxiliary_classifiers_exist_only_with_classes() -> None:
    assert not [name for name, _ in DualAttention(16).named_parameters() if "auxiliary" in name]
    assert DualAttention(16).forward_with_auxiliary(torch.ones(1, 16, 2, 3))[1] == {}
    extra = sum(p.numel() for p in DualAttention(16, num_classes=3).auxiliary.parameters())
    assert extra == 2 * (16 * 3 + 3)


def test_forward_does_not_run_the_classifiers() -> None:
    operator = DualAttention(16, num_classes=3)
    operator.auxiliary["position"].register_forward_hook(lambda *_: pytest.fail("classifier ran"))
    operator(torch.ones(1, 16, 2, 3))


def test_branches_are_classified_each_for_itself() -> None:
    operator = checks.construct(DualAttention, 16, num_classes=3)
    x = checks.sample(1, 16, 5, 7, dtype=torch.float32)
    logits = operator.forward_with_auxiliary(x)[1]
    for name, branch in (("position", operator.position), ("channel", operator.channel)):
        torch.testing.assert_close(logits[name], operator.auxiliary[name](branch(x)))


def test_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"PositionAttention: expected implementation in .* got 'flash'"):
        PositionAttention(16, implementation="flash")


def test_reduction_has_to_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="PositionAttention: expected channels divisible by the reduction 8, got 12"):
        DualAttention(12)


@pytest.mark.parametrize("implementation", ["reference", "fused"])
def test_parity_with_mmsegmentation(implementation: str) -> None:
    head = golden.load("da")
    state, x = head["state_dict"], head["inputs"][0]
    operator = DualAttention(32, reduction=4, num_classes=7, implementation=implementation).eval()
    renamed = {
        f"position.{ours}.{kind}": state[f"pam.{theirs}.{kind}"]
        for ours, theirs in (("query", "query_project"), ("key", "key_project"), ("value", "value_project"))
        for kind in ("weight", "bias")
    }
    renamed["position.gamma"] = state["pam.gamma.scale"].reshape(1)
    renamed["channel.gamma"] = state["cam.gamma.scale"].reshape(1)
    operator.load_state_dict(renamed, strict=False)

    with torch.no_grad():
        position = operator.position(golden.conv_bn_relu(x, state, "pam_in_conv"))
        channel = operator.channel(golden.conv_bn_relu(x, state, "cam_in_conv"))
        position = golden.conv_bn_relu(position, state, "pam_out_conv")
        channel = golden.conv_bn_relu(channel, state, "cam_out_conv")
        logits = (
            golden.classify(position + channel, state),
            golden.classify(position, state, "pam_conv_seg"),
            golden.classify(channel, state, "cam_conv_seg"),
        )
    for got, expected in zip(logits, head["all_outputs"], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
