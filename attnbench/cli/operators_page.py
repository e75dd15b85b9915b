"""`operators_page.py`: the page of all built-in operators and the map of the field, written from the registry."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

import operators
from attnbench.cli.arguments import Parser
from attnbench.errors import UsageError
from attnbench.models.build import build_operator
from attnbench.report.field_map import Place, field_map
from operators.interface import AttentionOperator

PROG = "operators_page.py"
DEFAULT_PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
MAP_CHANNELS = 512
MAP_SIDES = (17, 65, 257)
_NUM_CLASSES = 19
_HEAD = """\
# Operators

Written by `python scripts/operators_page.py` from the registry; change an operator's `spec` or docstring, not this
page. *Reach* is which input pixels one output pixel depends on. *Growth* is how the cost grows with `N = H*W`, in the
limit. *Cost* is in multiply-accumulates of one image of `C` channels; other letters are the operator's own, explained
in its docstring.

![The map of the field](field-map.png)

The figures behind the map, from the closed forms at 512 channels, are in [field-map.csv](field-map.csv).

| Name | Paper | Year | Reach | Growth | Cost | Deviations |
|---|---|---|---|---|---|---|
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page, and the map and its figures beside it; returns the exit code."""
    parser = Parser(PROG, "Write docs/operators.md and the map of the field from the registry.")
    parser.add_argument("--output", type=Path, default=DEFAULT_PAGE, metavar="FILE", help="the page to write")
    parsed = parser.parse(arguments)
    places = [_place(operator) for operator in built_in()]
    drawing = parsed.output.with_name("field-map.png")
    try:
        parsed.output.write_text(page(), encoding="utf-8")
        parsed.output.with_name("field-map.csv").write_text(figures(), encoding="utf-8")
        drawing.write_bytes(field_map(places, MAP_SIDES, MAP_CHANNELS).png())
    except OSError as error:
        raise UsageError(f"--output: expected a file, got {str(parsed.output)!r} ({error.strerror})") from error
    print(parsed.output, drawing, sep="\n")
    return 0


def built_in() -> list[type[AttentionOperator]]:
    """The operators of the project, in the order of the registry."""
    found = [operators.get(name) for name in operators.names()]
    return [operator for operator in found if operator.__module__.startswith("operators.")]


def page() -> str:
    """The whole page: one line for each built-in operator."""
    return _HEAD + "".join(_line(operator) for operator in built_in())


def figures() -> str:
    """What the map shows, as CSV."""
    rows = []
    for operator in built_in():
        place = _place(operator)
        macs = {f"macs_{side}x{side}": value for side, value in zip(MAP_SIDES, place.macs, strict=True)}
        spec = {"operator": operator.spec.name, "title": place.title, "kind": place.kind}
        rows.append({**spec, "reach": place.reach, "growth": place.growth, **macs})
    return str(pd.DataFrame(rows).to_csv(index=False))


def _place(operator: type[AttentionOperator]) -> Place:
    spec = operator.spec
    with torch.device("meta"):
        built = build_operator(spec.name, MAP_CHANNELS, num_classes=_NUM_CLASSES)
    macs = tuple(built.macs(side, side) for side in MAP_SIDES)
    return Place(spec.title, spec.kind, spec.reach, spec.growth, macs)


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
