"""An operator of any number of maps held against an oracle on tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def assert_oracle(operator: nn.Module, oracle: Callable[..., Tensor], *inputs: Tensor, tolerance: float = 1e-9) -> None:
    """Holds `operator(*inputs)` against `oracle(*inputs, parameters)`, derivatives of a fixed sum included.

    `parameters` are clones of the operator's state dict, by name.
    """
    own = [x.detach().clone().requires_grad_() for x in inputs]
    theirs = [x.detach().clone().requires_grad_() for x in inputs]
    tensors = {name: value.detach().clone() for name, value in operator.state_dict().items()}
    names = [name for name, _ in operator.named_parameters()]
    leaves = [tensors[name].requires_grad_() for name in names]
    got, expected = operator(*own), oracle(*theirs, tensors)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    probe = torch.linspace(-1, 1, got.numel(), dtype=got.dtype).reshape(got.shape)
    actual = torch.autograd.grad((got * probe).sum(), [*own, *operator.parameters()])
    wanted = torch.autograd.grad((expected * probe).sum(), [*theirs, *leaves])
    labels = [f"input {index}" for index in range(len(inputs))] + names
    for label, a, b in zip(labels, actual, wanted, strict=True):
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance, msg=lambda text, label=label: f"{label}: {text}"
        )
