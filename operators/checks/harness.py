"""What every check needs: the operator under noise, inputs, tolerances, and the table of checks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from operators.interface import AttentionOperator

Operator = type[AttentionOperator]
Check = Callable[..., None]

CHANNELS = 64
NUM_CLASSES = 5

# Relative to the largest value; the same on every machine.
DOUBLE = 1e-9
SINGLE = 1e-4
HALF = 1e-1

CHECKS: dict[str, Check] = {}


class ConformanceError(AssertionError):
    """An operator that does not keep the contract; the message says what was expected and what came."""


def check(function: Callable[..., None]) -> Check:
    """Adds `check_<name>` to `CHECKS` as `<name>`; what the operator raises becomes a `ConformanceError`."""
    name = function.__name__.removeprefix("check_")

    @functools.wraps(function)
    def run(operator: Operator, **settings: Any) -> None:
        try:
            function(operator, **settings)
        except ConformanceError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever an operator raises, it breaks the contract
            fail(
                operator,
                f"expected to run through check {name!r}, got {type(error).__name__}: {error}",
                error,
            )

    CHECKS[name] = run
    return run


def fail(operator: Operator, message: str, cause: Exception | None = None) -> NoReturn:
    """Raises the `ConformanceError` `<Class>: <message>`."""
    raise ConformanceError(f"{operator.__name__}: {message}") from cause


def initialised(operator: Operator, channels: int = CHANNELS, **settings: Any) -> AttentionOperator:
    """Builds `operator` as its constructor leaves it, with `num_classes` if that declares it."""
    if "num_classes" in inspect.signature(operator).parameters:
        settings.setdefault("num_classes", NUM_CLASSES)
    return operator(channels, **settings)


def construct(operator: Operator, channels: int = CHANNELS, *, seed: int = 0, **settings: Any) -> AttentionOperator:
    """Builds `operator` in evaluation mode, with seeded noise in every parameter and running statistic.

    A zero-initialised branch would hide whatever is wrong behind it. Other buffers keep what the operator
    gave them: they may have to satisfy a constraint, such as bases of unit norm.

    Args:
        operator: class to build; it receives `num_classes` if its constructor declares it.
        channels: width of the map.
        seed: seed of initialisation and noise; the global random state is left as it was.
        settings: keywords of the constructor.

    Example:
        >>> from operators import get
        >>> construct(get("conv3x3"), 8)(torch.ones(1, 8, 5, 7)).shape
        torch.Size([1, 8, 5, 7])
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        built = initialised(operator, channels, **settings)
        for parameter in built.parameters():
            # Scaled by the fan-in, so that energies stay where a softmax is neither flat nor saturated.
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            sign = torch.randint_like(parameter, 2) * 2 - 1
            parameter.add_(sign * torch.empty_like(parameter).uniform_(0.2, 0.4) / fan_in**0.5)
        for module in built.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.normal_(0.0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return built.eval()


def sample(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Seeded normal features; the global random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.randn(shape, dtype=torch.float64).to(dtype)


def error_between(got: Tensor, expected: Tensor, *, floor: float = 1e-300) -> float:
    """Largest difference relative to the largest expected value, or to `floor` if that is larger.

    It is infinite where a value is not finite or the shapes differ.

    Example:
        >>> error_between(torch.tensor([2.0, 3.0]), torch.tensor([2.0, 4.0]))
        0.25
    """
    if got.shape != expected.shape or not bool(torch.isfinite(got).all()):
        return float("inf")
    if not expected.numel():
        return 0.0
    scale = max(float(expected.abs().amax()), floor)
    return float((got.to(expected.dtype) - expected).abs().amax()) / scale


def expect_near(operator: Operator, what: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Fails unless `got` is within `tolerance` of `expected`, relative to the largest expected value."""
    error = error_between(got, expected)
    if not error <= tolerance:
        fail(operator, f"expected {what} within {tolerance:g}, got a relative difference of {error:.3g}")


def expect_error(operator: Operator, what: str, kind: type[Exception], call: Callable[[], object]) -> str:
    """Message of the `kind` that `call` raises; fails if it raises something else or nothing."""
    try:
        call()
    except kind as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - an error of any other kind is the finding
        fail(operator, f"expected {kind.__name__} for {what}, got {type(error).__name__}: {error}", error)
    fail(operator, f"expected {kind.__name__} for {what}, got no error")
