"""Checks of what an operator declares, takes and returns."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from operators.checks.harness import (
    CHANNELS,
    CHECKS,
    DOUBLE,
    NUM_CLASSES,
    Operator,
    check,
    construct,
    expect_error,
    expect_near,
    fail,
    sample,
)
from operators.interface import AttentionOperator, OperatorSpec, has_core
from operators.registry import suggest

_SHAPES = ((1, 7, 5), (3, 13, 11), (3, 1, 9), (1, 8, 1), (1, 1, 1))


@check
def check_spec(operator: Operator, **settings: Any) -> None:
    """The spec is complete; the constructor takes `channels` first, and known settings by keyword."""
    spec = getattr(operator, "spec", None)
    if not isinstance(spec, OperatorSpec):
        fail(operator, f"expected an OperatorSpec as spec, got {spec!r}")
    source = spec.source
    if not (spec.title and source.title and source.venue and source.year > 1900 and source.url.startswith("http")):
        fail(
            operator,
            f"expected a title, and a source with title, venue, year and url, got {spec.title!r}, {source}",
        )
    for name in spec.expected_failures:
        if name not in CHECKS:
            fail(
                operator,
                f"expected names of checks in expected_failures, got {name!r}{suggest(name, CHECKS)}",
            )
    _check_constructor(operator, spec)
    message = expect_error(operator, "channels=0", ValueError, lambda: construct(operator, 0, **settings))
    if operator.__name__ not in message:
        fail(operator, f"expected the error for channels=0 to name the class, got {message!r}")
    expect_error(operator, "an unknown keyword", TypeError, lambda: construct(operator, no_such_setting=1, **settings))


def _check_constructor(operator: Operator, spec: OperatorSpec) -> None:
    first, *others = inspect.signature(operator).parameters.values()
    if first.name != "channels" or first.default is not first.empty or first.kind is first.KEYWORD_ONLY:
        fail(operator, f"expected channels first and without default, got {first}")
    for parameter in others:
        if parameter.kind is not parameter.KEYWORD_ONLY:
            fail(operator, f"expected settings by keyword alone and no *args or **kwargs, got {parameter}")
        if parameter.default is parameter.empty and parameter.name != "num_classes":
            fail(operator, f"expected a default for each setting, got {parameter}")
    declared = {parameter.name: parameter.default for parameter in others}
    if spec.auxiliary and "num_classes" not in declared:
        fail(operator, "expected the keyword num_classes of an operator with auxiliary losses, got none")
    if len(spec.implementations) > 1 and declared.get("implementation") != "reference":
        fail(operator, "expected the keyword implementation='reference' where there are several, got none")
    if "implementation" in declared:
        expect_error(
            operator,
            "an unknown implementation",
            ValueError,
            lambda: construct(operator, implementation="no_such"),
        )


@check
def check_shapes(operator: Operator, **settings: Any) -> None:
    """Shape, dtype and device are kept at any height, width and batch size."""
    for dtype in (torch.float32, torch.float64):
        built = construct(operator, **settings).to(dtype)
        for batch, height, width in _SHAPES:
            x = sample(batch, CHANNELS, height, width, dtype=dtype)
            with torch.no_grad():
                y = built(x)
            if (y.shape, y.dtype, y.device) != (x.shape, x.dtype, x.device):
                fail(operator, f"expected {_describe(x)}, got {_describe(y)}")


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} on {x.device}"


@check
def check_bad_input(operator: Operator, **settings: Any) -> None:
    """A map of another rank or width is a `ValueError` that names the class."""
    built = construct(operator, **settings)
    for shape in ((CHANNELS, 5, 7), (1, CHANNELS + 1, 5, 7), (1, CHANNELS // 2, 5, 7), (1, CHANNELS, 35)):
        x = sample(*shape, dtype=torch.float32)
        message = expect_error(operator, f"input {shape}", ValueError, partial(built, x))
        if operator.__name__ not in message:
            fail(operator, f"expected the error for input {shape} to name the class, got {message!r}")


@check
def check_auxiliary(operator: Operator, **settings: Any) -> None:
    """`forward_with_auxiliary` returns what `forward` returns, and the logits that the spec declares."""
    built = construct(operator, **settings)
    x = sample(2, CHANNELS, 5, 7, dtype=torch.float32)
    with torch.no_grad():
        y, logits = built.forward_with_auxiliary(x)
        expect_near(operator, "forward_with_auxiliary(x)[0] equal to forward(x)", y, built(x), 0.0)
    if set(logits) != set(operator.spec.auxiliary):
        fail(operator, f"expected auxiliary logits {sorted(operator.spec.auxiliary)}, got {sorted(logits)}")
    classes = settings.get("num_classes", NUM_CLASSES)
    shapes = {"pixel": (2, classes, 5, 7), "presence": (2, classes)}
    for name, auxiliary in operator.spec.auxiliary.items():
        expected = shapes[auxiliary.target]
        if tuple(logits[name].shape) != expected:
            fail(
                operator,
                f"expected {auxiliary.target} logits {name!r} {expected}, got {tuple(logits[name].shape)}",
            )


@check
def check_core(operator: Operator, **settings: Any) -> None:
    """Where there is a submodule `core`, `forward` runs it, and it runs again on what it was given."""
    built = construct(operator, **settings).double()
    if not has_core(built):
        return
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []

    def capture(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append((args, kwargs, output))

    handle = built.core.register_forward_hook(capture, with_kwargs=True)
    try:
        with torch.no_grad():
            built(sample(2, CHANNELS, 5, 7))
    finally:
        handle.remove()
    if not calls:
        fail(operator, "expected forward to call the submodule core, got no call")
    for args, kwargs, output in calls:
        with torch.no_grad():
            again = built.core(*args, **kwargs)
        for got, expected in zip(_tensors(again), _tensors(output), strict=True):
            expect_near(operator, "the core's output on the arguments that forward gave it", got, expected, DOUBLE)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (tuple, list)) else []


@check
def check_attention(operator: Operator, **settings: Any) -> None:
    """`attention`, where there is one, is `(B, heads, H, W)`, finite, and zero where nothing is read."""
    if operator.attention is AttentionOperator.attention:
        return
    height, width, position = 5, 7, (1, 4)
    built = construct(operator, **settings).double()
    x = sample(2, CHANNELS, height, width)
    with torch.no_grad():
        weights = built.attention(x, position)
    if weights.ndim != 4 or weights.shape[0] != 2 or tuple(weights.shape[-2:]) != (height, width):
        fail(operator, f"expected attention (2, heads, {height}, {width}), got {tuple(weights.shape)}")
    if not bool(torch.isfinite(weights).all()):
        fail(operator, "expected finite attention weights, got others")
    for outside in ((height, 0), (0, width), (-1, 0), (0, -1)):
        expect_error(operator, f"position {outside}", IndexError, partial(built.attention, x, outside))
    unread = ~_read_from(built, x[:1], position)
    strayed = float(weights[:1].abs().amax(1)[0][unread].sum())
    if strayed > DOUBLE:
        fail(
            operator,
            f"expected zero attention where the output does not depend on the input, got {strayed:.3g}",
        )


def _read_from(built: AttentionOperator, x: Tensor, position: tuple[int, int]) -> Tensor:
    """Which input pixels `(H, W)` the output at `position` depends on: perturbs each in a copy of its own."""
    height, width = x.shape[-2:]
    pixels = torch.eye(height * width, dtype=x.dtype, device=x.device).view(-1, 1, height, width)
    with torch.no_grad():
        base, perturbed = built(x), built(x + pixels * sample(1, x.shape[1], 1, 1, seed=2))
    row, column = position
    change = (perturbed - base)[:, :, row, column].abs().amax(1)
    threshold = 1e-13 * float(base.abs().amax())
    return torch.gt(change.view(height, width), threshold)


@check
def check_responsibilities(operator: Operator, **settings: Any) -> None:
    """`responsibilities`, where there are bases, is `(B, K, H, W)` and sums to one over the bases."""
    if operator.responsibilities is AttentionOperator.responsibilities:
        return
    built = construct(operator, **settings).double()
    with torch.no_grad():
        weights = built.responsibilities(sample(2, CHANNELS, 5, 7))
    if weights.ndim != 4 or weights.shape[0] != 2 or tuple(weights.shape[-2:]) != (5, 7):
        fail(operator, f"expected responsibilities (2, K, 5, 7), got {tuple(weights.shape)}")
    total = weights.sum(1)
    expect_near(operator, "responsibilities that sum to one over the bases", total, torch.ones_like(total), DOUBLE)
