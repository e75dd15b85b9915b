"""An operator held against an oracle: output and every gradient, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from oracle_layers import Map, Parameters, to_image, to_map
from torch import Tensor

from operators import checks
from operators.interface import AttentionOperator

Oracle = Callable[[Map, Parameters], Map]


def assert_same(operator: AttentionOperator, oracle: Oracle, x: Tensor) -> None:
    """Output and gradients of `operator` on `(B, C, H, W)` are those of `oracle` on each image."""
    operator = operator.double().eval()
    parameters = {name: value for name, value in operator.named_parameters() if value.requires_grad}
    x = x.clone().requires_grad_()
    y = operator(x)
    probe = checks.sample(*y.shape, seed=2)
    gradients = torch.autograd.grad((y * probe).sum(), [x, *parameters.values()])

    tensors = {name: value.detach().clone() for name, value in operator.state_dict().items()}
    leaves = [x.detach().clone().requires_grad_(), *(tensors[name].requires_grad_() for name in parameters)]
    expected = torch.stack([to_image(oracle(to_map(image), tensors)) for image in leaves[0]])
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    expected_gradients = torch.autograd.grad((expected * probe).sum(), leaves)
    for name, got, wanted in zip(("the input", *parameters), gradients, expected_gradients, strict=True):
        # Gradients that vanish in exact arithmetic, such as a key bias under softmax, are rounding.
        scale = max(float(wanted.abs().amax()), 1e-3)
        torch.testing.assert_close(
            got, wanted, rtol=1e-9, atol=1e-9 * scale, msg=lambda text, name=name: f"gradient of {name}: {text}"
        )


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
