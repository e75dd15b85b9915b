"""Running the checks: in front of a measurement, and as a parametrised test."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from operators.checks.harness import CHECKS, Check, ConformanceError, Operator
from operators.registry import suggest

# Cheap enough, together, to run in front of every measurement.
QUICK = (
    "spec",
    "shapes",
    "bad_input",
    "deterministic",
    "batch_independence",
    "evaluation_state",
    "input_kept",
    "auxiliary",
    "parameter_gradients",
    "macs",
)

# What the spec claims for the default settings, and what holds for the class with all its implementations.
_AT_DEFAULTS = frozenset({"reach", "growth"})
_OF_THE_CLASS = frozenset({"spec", "growth", "fused"})


def run_checks(
    operator: Operator, *, only: Iterable[str] | None = None, settings: Mapping[str, Any] | None = None
) -> dict[str, str | None]:
    """Runs checks on `operator` and returns, for each, `None` or the sentence in which it failed.

    A check in `spec.expected_failures` is `None` when it fails, and a failure when it passes.

    Args:
        operator: the class.
        only: names from `CHECKS`, for example `QUICK`; by default all of them. `reach` and `growth` are
            claimed for the default settings and left out by default where `settings` holds hyper-parameters.
        settings: keywords of the constructor.

    Raises:
        ValueError: if a name in `only` is no check.

    Example:
        >>> from operators import get
        >>> run_checks(get("identity"), only=("shapes", "reach"))
        {'shapes': None, 'reach': None}
    """
    settings = dict(settings or {})
    if only is None:
        special = set(settings) - {"implementation", "num_classes"}
        only = [name for name in CHECKS if not (special and name in _AT_DEFAULTS)]
    results: dict[str, str | None] = {}
    for name in only:
        if name not in CHECKS:
            raise ValueError(f"run_checks: unknown check {name!r}{suggest(name, CHECKS)}")
        results[name] = _outcome(operator, name, settings)
    return results


def _outcome(operator: Operator, name: str, settings: Mapping[str, Any]) -> str | None:
    reason = _expected_failures(operator).get(name)
    try:
        CHECKS[name](operator, **settings)
    except ConformanceError as error:
        return None if reason else str(error)
    return f"{operator.__name__}: expected check {name!r} to fail ({reason}), got a pass" if reason else None


def _expected_failures(operator: Operator) -> Mapping[str, str]:
    # The check of the spec itself has to run on a class without one.
    spec = getattr(operator, "spec", None)
    return getattr(spec, "expected_failures", {})


def parametrize_with_checks(operators: Iterable[Operator]) -> Callable[[Any], Any]:
    """Pytest decorator: runs a test `(operator, check)` for every check of every operator and implementation.

    A check in `spec.expected_failures` is a strict expected failure with the spec's reason. Needs pytest.

    Args:
        operators: classes with a spec.

    Example:
        >>> from operators import get
        >>> @parametrize_with_checks([get("identity")])
        ... def test_conformance(operator, check):
        ...     check(operator)
    """
    import pytest

    cases = []
    for operator in operators:
        for implementation in operator.spec.implementations:
            for name, run in CHECKS.items():
                if implementation == "reference":
                    case: Check = run
                    label = f"{operator.spec.name}-{name}"
                elif name in _OF_THE_CLASS:
                    continue
                else:
                    case = functools.partial(run, implementation=implementation)
                    label = f"{operator.spec.name}-{implementation}-{name}"
                reason = operator.spec.expected_failures.get(name)
                marks = [pytest.mark.xfail(reason=reason, strict=True, raises=ConformanceError)] if reason else []
                cases.append(pytest.param(operator, case, id=label, marks=marks))
    return pytest.mark.parametrize(("operator", "check"), cases)
