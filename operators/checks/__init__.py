"""The contract of operators as importable checks, for the built-ins and for third parties alike.

A check takes an operator class (and settings for its constructor), builds the operator, most of them with noise in
every parameter, and raises a `ConformanceError` that says what was expected and what came. In a test suite:

    from operators.checks import parametrize_with_checks

    @parametrize_with_checks([MyAttention])
    def test_conformance(operator, check):
        check(operator)

A check that an operator cannot pass is named in `spec.expected_failures` with the reason, and must then fail.
"""

from operators.checks.behaviour import (
    check_autocast,
    check_batch_independence,
    check_compile,
    check_deterministic,
    check_evaluation_state,
    check_input_kept,
    check_memory_format,
    check_precision,
    check_state_dict,
)
from operators.checks.claims import (
    check_gradient_claim,
    check_growth,
    check_macs,
    check_macs_batch,
    check_reach,
)
from operators.checks.harness import (
    CHANNELS,
    CHECKS,
    NUM_CLASSES,
    Check,
    ConformanceError,
    construct,
    sample,
)
from operators.checks.outputs import (
    check_attention,
    check_auxiliary,
    check_bad_input,
    check_core,
    check_responsibilities,
    check_shapes,
    check_spec,
)
from operators.checks.running import QUICK, parametrize_with_checks, run_checks
from operators.checks.training import check_fused, check_learning, check_parameter_gradients, check_small_batch

__all__ = [
    "CHANNELS",
    "CHECKS",
    "NUM_CLASSES",
    "QUICK",
    "Check",
    "ConformanceError",
    "check_attention",
    "check_autocast",
    "check_auxiliary",
    "check_bad_input",
    "check_batch_independence",
    "check_compile",
    "check_core",
    "check_deterministic",
    "check_evaluation_state",
    "check_fused",
    "check_gradient_claim",
    "check_growth",
    "check_input_kept",
    "check_learning",
    "check_macs",
    "check_macs_batch",
    "check_memory_format",
    "check_parameter_gradients",
    "check_precision",
    "check_reach",
    "check_responsibilities",
    "check_shapes",
    "check_small_batch",
    "check_spec",
    "check_state_dict",
    "construct",
    "parametrize_with_checks",
    "run_checks",
    "sample",
]
