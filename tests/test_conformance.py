"""Every registered operator, in each of its implementations, against every check of the contract."""

from __future__ import annotations

import operators
from operators import checks


@checks.parametrize_with_checks([operators.get(name) for name in operators.names()])
def test_conformance(operator: type[operators.AttentionOperator], check: checks.Check) -> None:
    check(operator)
