"""DANet's branches, each alone and together: gradients against the equations, and heads around one of them."""

from __future__ import annotations

from typing import Any

import golden
import oracle_dual as oracle
import pytest
import torch
from against_oracle import assert_same, rename

from operators import checks, get
from operators.dual import DualAttention
from operators.dual_branches import ChannelAttention, PositionAttention


@pytest.mark.parametrize("implementation", ["reference", "fused"])
def test_position_attention_is_the_papers(implementation: str) -> None:
    operator = checks.construct(PositionAttention, 8, reduction=4, implementation=implementation)
    assert_same(operator, oracle.position_block, checks.sample(2, 8, 3, 4))


def test_channel_attention_is_the_papers() -> None:
    assert_same(checks.construct(ChannelAttention, 4), oracle.channel_block, checks.sample(2, 4, 2, 3))


@pytest.mark.parametrize("implementation", ["reference", "fused"])
def test_dual_attention_is_the_papers(implementation: str) -> None:
    operator = checks.construct(DualAttention, 4, reduction=2, num_classes=None, implementation=implementation)
    assert_same(operator, oracle.dual_block, checks.sample(2, 4, 2, 3))


@pytest.mark.parametrize(("name", "operator"), [("position", PositionAttention), ("channel", ChannelAttention)])
def test_each_branch_stands_alone(name: str, operator: Any) -> None:
    assert get(f"{name}_attention") is operator
    x = checks.sample(2, 16, 5, 7, dtype=torch.float32)
    torch.testing.assert_close(operator(16)(x), x, rtol=0, atol=0)
    both = checks.construct(DualAttention, 16)
    alone = operator(16)
    alone.load_state_dict(getattr(both, name).state_dict())
    torch.testing.assert_close(alone(x), getattr(both, name)(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("branch", "names", "index"),
    [
        ("pam", {"query_project": "query", "key_project": "key", "value_project": "value"}, 1),
        ("cam", {}, 2),
    ],
)
def test_branch_of_the_head_is_mmsegmentations(branch: str, names: dict[str, str], index: int) -> None:
    head = golden.load("da")
    state = head["state_dict"]
    operator = PositionAttention(32, reduction=4) if branch == "pam" else ChannelAttention(32)
    own = rename(state, {f"{branch}.{theirs}": ours for theirs, ours in names.items()})
    operator.load_state_dict({"gamma": state[f"{branch}.gamma.scale"].reshape(1), **own})
    with torch.no_grad():
        y = operator(golden.conv_bn_relu(head["inputs"][0], state, f"{branch}_in_conv"))
        logits = golden.classify(golden.conv_bn_relu(y, state, f"{branch}_out_conv"), state, f"{branch}_conv_seg")
    torch.testing.assert_close(logits, head["all_outputs"][index], rtol=0, atol=1e-4)
