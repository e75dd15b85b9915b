"""The controls: what stands in the slot without attention."""

from __future__ import annotations

import pytest
import torch

import operators
from operators import checks
from operators.controls import Conv1x1, Conv3x3, Identity


@pytest.mark.parametrize("operator", [Identity, Conv1x1, Conv3x3])
def test_is_registered_as_a_control(operator: type[operators.AttentionOperator]) -> None:
    assert operators.get(operator.spec.name) is operator
    assert operator.spec.kind == "control"


def test_controls_come_first() -> None:
    assert operators.names()[:3] == ("identity", "conv1x1", "conv3x3")


def test_identity_returns_its_input_and_has_nothing_to_learn() -> None:
    x = checks.sample(2, 8, 3, 5)
    assert torch.equal(Identity(8)(x), x)
    assert not list(Identity(8).parameters())
    assert Identity(8).macs(97, 97) == 0


@pytest.mark.parametrize(("operator", "kernel"), [(Conv1x1, 1), (Conv3x3, 3)])
def test_convolution_is_the_sum_over_its_window(operator: type[Conv1x1], kernel: int) -> None:
    built = checks.construct(operator, 4).double()
    x = checks.sample(1, 4, 3, 5)
    reach = kernel // 2
    padded = torch.nn.functional.pad(x, (reach,) * 4)[0]
    expected = torch.zeros_like(x[0])
    for row in range(3):
        for column in range(5):
            window = padded[:, row : row + kernel, column : column + kernel]
            expected[:, row, column] = (built.conv.weight * window).sum((1, 2, 3))
    norm = built.norm
    expected = (expected - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + 1e-5).sqrt()
    expected = (expected * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).clamp_min(0)
    torch.testing.assert_close(built(x)[0], expected)
    assert built.macs(3, 5) == 15 * kernel**2 * 16


@pytest.mark.parametrize(("operator", "parameters"), [(Conv1x1, 64), (Conv3x3, 576)])
def test_parameters_are_one_kernel_and_one_normalisation(operator: type[Conv1x1], parameters: int) -> None:
    assert sum(p.numel() for p in operator(8).parameters()) == parameters + 2 * 8
