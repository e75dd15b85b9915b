"""Checks of what an operator claims of itself: reach, growth, cost and gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from operators.checks.harness import CHANNELS, Operator, check, construct, fail, sample
from operators.checks.products import product_counter
from operators.interface import AttentionOperator

_LARGE_SIDES = (2**14, 2**15)
_GROWTH_TOLERANCE = 0.05
_STEP = 1e-8
_GRADIENT_TOLERANCE = 1e-5
_CUT_DIFFERENCE = 1e-3


@check
def check_reach(operator: Operator, **settings: Any) -> None:
    """The outputs that change with one input pixel are those of `spec.reach`.

    A pixel in the middle and one in the corner are perturbed in float64: autograd does not see what runs
    without gradients.
    """
    built = construct(operator, **settings).double()
    height, width = 27, 29
    x = sample(1, CHANNELS, height, width)
    with torch.no_grad():
        base = built(x)
        for row, column in ((height // 2, width // 2), (0, 0)):
            moved = x.clone()
            moved[:, :, row, column] += sample(CHANNELS, seed=2)
            change = (built(moved) - base).abs().amax((0, 1))  # (H, W)
            reach = _classify(change > 1e-13 * base.abs().amax(), row, column)
            if reach != operator.spec.reach:
                fail(
                    operator,
                    f"expected reach {operator.spec.reach!r} from pixel {(row, column)}, got {reach!r}",
                )


def _classify(changed: Tensor, row: int, column: int) -> str:
    """Which reach the changed outputs `(H, W)` show when the input at `(row, column)` changed."""
    if bool(changed.all()):
        return "global"
    elsewhere = changed.clone()
    elsewhere[row, column] = False
    if not bool(elsewhere.any()):
        return "pixel" if bool(changed[row, column]) else "nothing"
    # bands of whole rows and columns, as where a kernel runs along a strip, and what lies off them
    bands = changed.all(1)[:, None] | changed.all(0)[None]  # (H, W)
    if bool(bands.any()):
        return "irregular" if _spans(changed & ~bands) else "axis"
    return "irregular" if _spans(changed) else "window"


def _spans(changed: Tensor) -> bool:
    """Whether what changed `(H, W)` touches every row or every column."""
    return bool(changed.any(1).all()) or bool(changed.any(0).all())


@check
def check_growth(operator: Operator, **settings: Any) -> None:
    """`macs` grows with the declared power of `N = H*W` in the limit."""
    built = construct(operator, **settings)
    small, large = (built.macs(side, side) for side in _LARGE_SIDES)
    if small == large == 0:
        growth = 0.0
    elif small < 1:
        fail(operator, f"expected macs that are positive or nothing at all, got {small} and {large}")
    else:
        growth = math.log(large / small) / math.log((_LARGE_SIDES[1] / _LARGE_SIDES[0]) ** 2)
    if abs(growth - operator.spec.growth) > _GROWTH_TOLERANCE:
        fail(operator, f"expected growth {operator.spec.growth}, got {growth:.3f}")


@check
def check_macs(operator: Operator, **settings: Any) -> None:
    """`macs` is exactly what is counted, at two sizes that are not square."""
    built = construct(operator, **settings)
    for height, width in ((7, 5), (12, 17)):
        expected, counted = built.macs(height, width), _count(built, 1, height, width)
        if not isinstance(expected, int) or expected != counted:
            fail(operator, f"expected macs({height}, {width}) of the {counted} counted, got {expected!r}")


@check
def check_macs_batch(operator: Operator, **settings: Any) -> None:
    """Three images cost three times the multiply-accumulates of one."""
    built = construct(operator, **settings)
    one, three = _count(built, 1, 7, 5), _count(built, 3, 7, 5)
    if three != 3 * one:
        fail(operator, f"expected {3 * one} multiply-accumulates for three images, got {three}")


def _count(built: AttentionOperator, batch: int, height: int, width: int) -> int:
    x = sample(batch, CHANNELS, height, width, dtype=torch.float32)
    with torch.no_grad(), product_counter() as counter:
        built(x)
    flops: int = counter.get_total_flops()
    return flops // 2


@check
def check_gradient_claim(operator: Operator, **settings: Any) -> None:
    """Autograd agrees with finite differences where the gradient is declared exact, and only there.

    Both are derivatives of a random projection of the output along a random direction.
    """
    built = construct(operator, **settings).double()
    x = sample(2, CHANNELS, 5, 7).requires_grad_()
    leaves = {name: value for name, value in built.named_parameters() if value.requires_grad}
    projection = sample(*x.shape, seed=2)
    directions = {name: sample(*value.shape, seed=3 + index) for index, (name, value) in enumerate(leaves.items())}
    direction = sample(*x.shape, seed=2 + len(leaves) + 1)

    gradients = torch.autograd.grad((built(x) * projection).sum(), [x, *leaves.values()], allow_unused=True)
    along = [direction, *directions.values()]
    autograd = sum(float((g * d).sum()) for g, d in zip(gradients, along, strict=True) if g is not None)

    def value(step: float) -> float:
        moved = {name: leaf + step * directions[name] for name, leaf in leaves.items()}
        return float((functional_call(built, moved, (x + step * direction,)) * projection).sum())

    with torch.no_grad():
        numeric = (value(_STEP) - value(-_STEP)) / (2 * _STEP)
    difference = abs(autograd - numeric) / max(abs(autograd), abs(numeric), 1e-12)
    if operator.spec.gradient == "exact" and difference > _GRADIENT_TOLERANCE:
        fail(operator, f"expected the exact derivative {numeric:.9g}, got {autograd:.9g} from autograd")
    if operator.spec.gradient == "cut" and difference < _CUT_DIFFERENCE:
        fail(
            operator,
            f"expected a cut gradient to differ from {numeric:.9g}, got {autograd:.9g} from autograd",
        )
