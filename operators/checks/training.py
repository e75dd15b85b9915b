"""Checks of an operator in training, and of its fused implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from operators.checks.harness import (
    CHANNELS,
    DOUBLE,
    Operator,
    check,
    construct,
    error_between,
    fail,
    initialised,
    sample,
)
from operators.interface import AttentionOperator

_STEPS = 4
"""Enough for what starts at zero behind what starts at zero."""


@check
def check_parameter_gradients(operator: Operator, **settings: Any) -> None:
    """In training, the input and every parameter that asks for a gradient receive a finite one."""
    built = construct(operator, **settings).train()
    x = sample(2, CHANNELS, 5, 7, dtype=torch.float32).requires_grad_()
    y, logits = built.forward_with_auxiliary(x)
    outputs = [y, *logits.values()]
    loss = torch.stack([(out * sample(*out.shape, seed=2, dtype=out.dtype)).sum() for out in outputs]).sum()
    torch.autograd.backward(loss)
    gradients = {"the input": x.grad}
    gradients.update({name: value.grad for name, value in built.named_parameters() if value.requires_grad})
    for name, gradient in gradients.items():
        if gradient is None:
            fail(operator, f"expected a gradient for {name}, got none")
        if not bool(torch.isfinite(gradient).all()):
            fail(operator, f"expected a finite gradient for {name}, got others")


@check
def check_learning(operator: Operator, **settings: Any) -> None:
    """From its own initialisation, steps of SGD reach every weight: a ReLU behind zeros would let none through."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = initialised(operator, **settings).train()
        waiting = {name: value for name, value in built.named_parameters() if value.requires_grad and value.ndim > 1}
        if not waiting:
            return
        optimizer = torch.optim.SGD(built.parameters(), lr=0.1)
        for step in range(_STEPS):
            y, logits = built.forward_with_auxiliary(sample(4, CHANNELS, 9, 9, seed=step, dtype=torch.float32))
            losses = [
                (out - sample(*out.shape, seed=step + _STEPS, dtype=out.dtype)).square().mean()
                for out in (y, *logits.values())
            ]
            optimizer.zero_grad()
            torch.autograd.backward(losses)
            optimizer.step()
            waiting = {name: value for name, value in waiting.items() if value.grad is None or not value.grad.any()}
    if waiting:
        fail(operator, f"expected a gradient other than zero for {', '.join(waiting)} in {_STEPS} steps, got none")


@check
def check_small_batch(operator: Operator, **settings: Any) -> None:
    """Training takes two images; one image or one pixel alone works, or is a `ValueError`."""
    built = construct(operator, **settings).train()
    built(sample(2, CHANNELS, 5, 7, dtype=torch.float32))
    for shape in ((1, CHANNELS, 5, 7), (1, CHANNELS, 1, 1)):
        x = sample(*shape, dtype=torch.float32)
        try:
            finite = bool(torch.isfinite(built(x)).all())
        except ValueError:
            continue
        if not finite:
            fail(operator, f"expected a finite output or a ValueError when training on {shape}, got neither")


@check
def check_fused(operator: Operator, **settings: Any) -> None:
    """Each further implementation has the reference's outputs, gradients and buffers."""
    settings.pop("implementation", None)
    for training in (False, True):
        expected = _trace(construct(operator, **settings), training)
        for implementation in operator.spec.implementations:
            if implementation == "reference":
                continue
            built = construct(operator, seed=1, implementation=implementation, **settings)
            built.load_state_dict(construct(operator, **settings).state_dict(), strict=True)
            got = _trace(built, training)
            if got.keys() != expected.keys():
                fail(operator, f"expected {implementation} gradients for the same parameters, got others")
            for name, value in expected.items():
                # Gradients that vanish in exact arithmetic, such as a key bias under softmax, are rounding.
                error = error_between(got[name], value, floor=1.0)
                if not error <= DOUBLE:
                    fail(
                        operator,
                        f"expected {implementation} {name} of reference, got a difference of {error:.3g}",
                    )


def _trace(built: AttentionOperator, training: bool) -> dict[str, Tensor]:
    """Output, gradients and buffers of one step in float64, under a fixed seed."""
    built = built.double().train(training)
    x = sample(2, CHANNELS, 5, 7).requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = built(x)
    torch.autograd.backward((y * sample(*y.shape, seed=2)).sum())
    gradients = {"the input": x.grad, **{name: value.grad for name, value in built.named_parameters()}}
    return {
        "output": y.detach(),
        **{f"gradient of {name}": value for name, value in gradients.items() if value is not None},
        **{f"buffer {name}": value.double() for name, value in built.named_buffers()},
    }
