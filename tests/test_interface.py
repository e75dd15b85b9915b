"""The operator contract: what the spec refuses, and the errors of the base class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from operators.interface import (
    AttentionOperator,
    OperatorSpec,
    Source,
    divide_channels,
    has_core,
    merge_positions,
)

SOURCE = Source(title="A paper", venue="CVPR", year=2019, url="https://example.org")
SOUND: dict[str, Any] = {
    "name": "sound",
    "title": "Sound",
    "source": SOURCE,
    "reach": "global",
    "growth": 2.0,
}


class Plain(AttentionOperator):
    spec = OperatorSpec(**SOUND)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.expect_map(x)
        return x

    def macs(self, height: int, width: int) -> int:
        return 0


def test_spec_has_empty_defaults_that_cannot_be_changed() -> None:
    spec = OperatorSpec(**SOUND)
    assert (spec.kind, spec.gradient, spec.implementations) == ("attention", "exact", ("reference",))
    assert not spec.auxiliary
    assert not spec.expected_failures
    with pytest.raises(TypeError):
        spec.expected_failures["shapes"] = "none"
    with pytest.raises(AttributeError):
        spec.name = "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reach": "everywhere"}, "expected reach in .*'global'.* got 'everywhere'"),
        ({"kind": "transformer"}, "expected kind in .* got 'transformer'"),
        ({"gradient": "none"}, "expected gradient in .* got 'none'"),
        ({"name": "Non-Local"}, "lower-case identifier as name, got 'Non-Local'"),
        ({"name": "Sound"}, "lower-case identifier as name, got 'Sound'"),
        ({"growth": -1.0}, r"expected growth >= 0, got -1\.0"),
        ({"growth": float("nan")}, "expected growth >= 0, got nan"),
        ({"growth": float("inf")}, "expected growth >= 0, got inf"),
        ({"implementations": ("fused",)}, "with 'reference' among them, got .'fused',."),
        ({"implementations": ("reference", "quick")}, "expected implementations from .* got .*'quick'"),
        ({"expected_failures": {"shapes": ""}}, "expected a reason for each expected failure"),
    ],
)
def test_spec_refuses_what_is_outside_its_vocabulary(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OperatorSpec(**{**SOUND, **change})


@pytest.mark.parametrize("channels", [0, -4, 2.0, None])
def test_channels_are_a_positive_integer(channels: Any) -> None:
    with pytest.raises(ValueError, match=f"Plain: expected channels >= 1, got {channels}"):
        Plain(channels)


@pytest.mark.parametrize("shape", [(8, 3, 5), (1, 7, 3, 5), (1, 8, 15), (1, 8, 3, 5, 1)])
def test_a_map_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Plain: expected \(B, 8, H, W\), got \(") as caught:
        Plain(8)(torch.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0, -1)])
def test_a_position_outside_the_map_is_refused(position: tuple[int, int]) -> None:
    with pytest.raises(IndexError, match="Plain: expected a position on the 3x5 map, got"):
        Plain(8).expect_position(torch.zeros(1, 8, 3, 5), position)


@pytest.mark.parametrize("position", [(0, 0), (2, 4)])
def test_the_corners_are_on_the_map(position: tuple[int, int]) -> None:
    Plain(8).expect_position(torch.zeros(1, 8, 3, 5), position)


def test_an_operator_without_weights_says_so() -> None:
    x = torch.zeros(1, 8, 3, 5)
    with pytest.raises(NotImplementedError, match="Plain: expected an operator with attention weights"):
        Plain(8).attention(x, (0, 0))
    with pytest.raises(NotImplementedError, match="Plain: expected an operator with bases"):
        Plain(8).responsibilities(x)


def test_without_auxiliary_losses_there_are_no_logits() -> None:
    x = torch.zeros(1, 8, 3, 5)
    y, logits = Plain(8).forward_with_auxiliary(x)
    assert y is x
    assert logits == {}


def test_core_is_a_submodule_of_that_name() -> None:
    operator = Plain(8)
    assert not has_core(operator)
    operator.core = nn.Identity()
    assert has_core(operator)


@pytest.mark.parametrize("reduction", [3, 0, -2])
def test_channels_are_divided_without_rest(reduction: int) -> None:
    assert divide_channels("NonLocal", 8, 4) == 2
    with pytest.raises(ValueError, match=f"NonLocal: expected channels divisible by the reduction {reduction}, got 8"):
        divide_channels("NonLocal", 8, reduction)


def test_positions_are_merged_row_by_row_in_any_memory_format() -> None:
    x = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    for layout in (torch.contiguous_format, torch.channels_last):
        merged = merge_positions(x.contiguous(memory_format=layout))
        assert merged.shape == (2, 3, 20)
        assert torch.equal(merged[:, :, 1 * 5 + 2], x[:, :, 1, 2])
