"""An operator held against an oracle: output and every gradient, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from oracle_layers import Map, Parameters, to_image, to_map
from torch import Tensor, nn

from operators.interface import AttentionOperator

Oracle = Callable[[Map, Parameters], Map]


def assert_oracle(operator: nn.Module, oracle: Callable[..., Tensor], *inputs: Tensor, tolerance: float = 1e-9) -> None:
    """Holds `operator(*inputs)` against `oracle(*inputs, parameters)`, derivatives of a fixed sum included.

    `parameters` are clones of the operator's state dict, by name; a frozen parameter has no derivative to compare.
    """
    parameters = {name: value for name, value in operator.named_parameters() if value.requires_grad}
    own = [x.detach().clone().requires_grad_() for x in inputs]
    theirs = [x.detach().clone().requires_grad_() for x in inputs]
    tensors = {name: value.detach().clone() for name, value in operator.state_dict().items()}
    leaves = [tensors[name].requires_grad_() for name in parameters]
    got, expected = operator(*own), oracle(*theirs, tensors)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    probe = torch.linspace(-1, 1, got.numel(), dtype=got.dtype).reshape(got.shape)
    actual = torch.autograd.grad((got * probe).sum(), [*own, *parameters.values()])
    wanted = torch.autograd.grad((expected * probe).sum(), [*theirs, *leaves])
    labels = [*(f"input {index}" for index in range(len(inputs))), *parameters]
    for label, a, b in zip(labels, actual, wanted, strict=True):
        # Gradients that vanish in exact arithmetic, such as a key bias under softmax, are rounding.
        scale = max(float(b.abs().amax()), 1e-3)
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance * scale, msg=lambda text, label=label: f"gradient of {label}: {text}"
        )


def assert_same(operator: AttentionOperator, oracle: Oracle, x: Tensor) -> None:
    """Output and gradients of `operator` on `(B, C, H, W)` are those of `oracle` on each image."""

    def on_batch(images: Tensor, tensors: Parameters) -> Tensor:
        return torch.stack([to_image(oracle(to_map(image), tensors)) for image in images])

    assert_oracle(operator.double().eval(), on_batch, x)


def rename(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Golden parameters under our names: `names` maps prefixes, and normalisations are called `norm` here."""
    renamed = {}
    for theirs, ours in names.items():
        for key, value in state.items():
            if key.startswith(f"{theirs}."):
                inner = key.removeprefix(theirs).replace(".bn.", ".norm.").replace(".gn.", ".norm.")
                inner = inner.replace(".depthwise_conv.", ".depthwise.").replace(".pointwise_conv.", ".pointwise.")
                renamed[ours + inner] = value
    return renamed


def settings_of(head: dict[str, Any]) -> dict[str, int]:
    """Width of branches and output in a golden head."""
    return {"width": head["config"]["channels"], "out_channels": head["config"]["channels"]}
