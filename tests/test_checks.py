"""The checks themselves: each catches what it looks for, and lets sound operators pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from broken_claims import ForgetsProduct, UnusedParameter
from broken_operators import BROKEN
from sound_operator import SPEC, Sound

import operators
from operators import checks
from operators.interface import AttentionOperator

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(("name", "operator", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_check_catches_its_broken_operator(name: str, operator: type[AttentionOperator], message: str) -> None:
    with pytest.raises(checks.ConformanceError, match=message) as caught:
        checks.CHECKS[name](operator)
    assert str(caught.value).startswith(f"{operator.__name__}: expected ")


def test_every_check_has_a_broken_operator() -> None:
    assert {name for name, _, _ in BROKEN} == set(checks.CHECKS)


def test_every_check_is_public() -> None:
    for name, check in checks.CHECKS.items():
        assert getattr(checks, f"check_{name}") is check


@pytest.mark.parametrize("operator", [Sound, operators.get("conv3x3"), operators.get("non_local")])
def test_sound_operators_pass(operator: type[AttentionOperator]) -> None:
    assert checks.run_checks(operator) == dict.fromkeys(checks.CHECKS)


def test_construct_leaves_nothing_at_zero_or_at_its_start() -> None:
    operator = checks.construct(operators.get("dual"), 64)
    assert all(bool(parameter.abs().max() > 0.01) for parameter in operator.parameters())
    assert abs(operator.position.gamma.item()) >= 0.2
    norm = checks.construct(operators.get("conv3x3"), 64).norm
    assert float(norm.running_mean.abs().max()) > 0
    assert float((norm.running_var - 1).abs().max()) > 0


def test_construct_is_seeded_and_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    first, second, other = (checks.construct(Sound, 8, seed=seed).conv.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_construct_keeps_buffers_that_are_not_statistics() -> None:
    class Anchored(Sound):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.register_buffer("anchors", torch.ones(3))

    assert torch.equal(checks.construct(Anchored).anchors, torch.ones(3))


def test_quick_is_a_part_of_the_checks() -> None:
    assert set(checks.QUICK) < set(checks.CHECKS)


def test_run_checks_reports_the_sentence() -> None:
    results = checks.run_checks(ForgetsProduct, only=("macs", "shapes"))
    assert results["shapes"] is None
    assert results["macs"] == "ForgetsProduct: expected macs(7, 5) of the 143360 counted, got 0"


def test_run_checks_refuses_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="unknown check 'mac'; did you mean 'macs'"):
        checks.run_checks(Sound, only=("mac",))


def test_run_checks_passes_settings_on() -> None:
    pooled = checks.run_checks(operators.get("global_context"), settings={"pooling": "average", "fusion": "both"})
    assert not {"reach", "growth"} & set(pooled)
    assert set(pooled.values()) == {None}
    fused = checks.run_checks(operators.get("dual"), only=("reach",), settings={"implementation": "fused"})
    assert fused == {"reach": None}
    refused = checks.run_checks(operators.get("dual"), only=("shapes",), settings={"reduction": 7})
    assert "divisible by the reduction 7" in str(refused["shapes"])


class ExpectedFailure(UnusedParameter):
    spec = replace(SPEC, expected_failures={"parameter_gradients": "gamma is for show"})


class UnexpectedPass(Sound):
    spec = replace(SPEC, expected_failures={"shapes": "it keeps them in truth"})


def test_expected_failures_are_strict() -> None:
    assert checks.run_checks(ExpectedFailure, only=("parameter_gradients",)) == {"parameter_gradients": None}
    passed = checks.run_checks(UnexpectedPass, only=("shapes",))["shapes"]
    assert passed == "UnexpectedPass: expected check 'shapes' to fail (it keeps them in truth), got a pass"


def test_run_checks_of_a_class_without_spec_reports_it() -> None:
    class Bare(AttentionOperator):
        pass

    assert "OperatorSpec" in str(checks.run_checks(Bare, only=("spec",))["spec"])


def test_decorator_runs_in_a_foreign_test_suite(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from dataclasses import replace
        from operators import controls, checks

        class Expected(controls.Identity):
            spec = replace(controls.Identity.spec, name="expected", expected_failures={"growth": "by design"})

            def macs(self, height, width):
                return height * width

        class Surprise(controls.Identity):
            spec = replace(controls.Identity.spec, name="surprise", expected_failures={"growth": "none"})

        @checks.parametrize_with_checks([Expected, Surprise])
        def test_conformance(operator, check):
            check(operator)
        """
    )
    result = pytester.runpytest_inprocess("-k", "growth or shapes", "-rxX", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, xfailed=1, failed=1)
    result.stdout.fnmatch_lines(["*XFAIL*expected-growth*by design*"])


def test_decorator_covers_every_implementation() -> None:
    mark = checks.parametrize_with_checks([operators.get("dual")]).mark
    labels = [case.id for case in mark.args[1]]
    assert "dual-macs" in labels
    assert "dual-fused-macs" in labels
    assert "dual-fused-spec" not in labels
