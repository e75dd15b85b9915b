"""`operators_page.py`: the page of all built-in operators, written from the registry."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path

import operators
from attnbench.cli.arguments import Parser
from attnbench.errors import UsageError
from operators.interface import AttentionOperator

PROG = "operators_page.py"
DEFAULT_PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
_HEAD = """\
# Operators

Written by `python scripts/operators_page.py` from the registry; change an operator's `spec` or docstring, not this
page. *Reach* is which input pixels one output pixel depends on. *Growth* is how the cost grows with `N = H*W`, in the
limit. *Cost* is in multiply-accumulates of one image of `C` channels; other letters are the operator's own, explained
in its docstring.

| Name | Paper | Year | Reach | Growth | Cost | Deviations |
|---|---|---|---|---|---|---|
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page; returns the exit code."""
    parser = Parser(PROG, "Write docs/operators.md from the registry.")
    parser.add_argument("--output", type=Path, default=DEFAULT_PAGE, metavar="FILE", help="the page to write")
    parsed = parser.parse(arguments)
    try:
        parsed.output.write_text(page(), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output: expected a file, got {str(parsed.output)!r} ({error.strerror})") from error
    print(parsed.output)
    return 0


def page() -> str:
    """The whole page: one line for each built-in operator, in the order of the registry."""
    found = [operators.get(name) for name in operators.names()]
    built_in = [operator for operator in found if operator.__module__.startswith("operators.")]
    return _HEAD + "".join(_line(operator) for operator in built_in)


def _line(operator: type[AttentionOperator]) -> str:
    spec = operator.spec
    paper = f"[{spec.source.title}]({spec.source.url}), {spec.source.venue}"
    growth = f"N^{spec.growth:g}" if spec.growth else "0"
    cells = (
        f"`{spec.name}`",
        paper,
        str(spec.source.year),
        spec.reach,
        growth,
        cost(operator),
        " ".join(spec.deviations) or "none",
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def cost(operator: type[AttentionOperator]) -> str:
    """The formula of the closed-form cost, as the operator's docstring states it.

    Example:
        >>> from operators.controls import Conv3x3
        >>> cost(Conv3x3)
        '`9 N C^2`'

    Raises:
        ValueError: if the docstring has no section `Cost`.
    """
    section = re.search(r"^Cost:\n((?:[ ]+.*\n?|\n)+)", inspect.getdoc(operator) or "", re.MULTILINE)
    if section is None:
        raise ValueError(f"{operator.__name__}: expected a section Cost in its docstring, got none")
    text = " ".join(section[1].split())
    if text.startswith("No multiply-accumulate"):
        return "`0`"
    return re.split(r" multiply-accumulates?\b", text)[0]
