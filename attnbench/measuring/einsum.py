"""How many products `torch.einsum` makes."""

from __future__ import annotations

import string
from collections.abc import Sequence
from math import prod


def einsum_macs(equation: str, shapes: Sequence[Sequence[int]], path: Sequence[int] | None = None) -> int:
    """Products of `torch.einsum`, contraction by contraction in the order in which torch contracts.

    A contraction of two operands multiplies once for each combination of their indices, save those that occur
    in one of the two alone and nowhere later: these are summed before. One operand is never multiplied.

    Args:
        equation: subscripts as `torch.einsum` takes them, ellipsis and implicit output included.
        shapes: shape of each operand.
        path: positions of the pairs to contract, flat; each result goes to the end. None goes from left to
            right.

    Example:
        >>> einsum_macs("bnk,bnc->bkc", [(2, 4225, 64), (2, 4225, 512)])
        276889600
        >>> einsum_macs("ij,jk,kl->il", [(3, 4), (4, 5), (5, 6)])
        150
    """
    terms, output = _subscripts(equation, shapes)
    # A dimension of size 1 broadcasts: torch treats its operand as not having the index.
    operands = [
        {label: size for label, size in zip(term, shape, strict=True) if size != 1}
        for term, shape in zip(terms, shapes, strict=True)
    ]
    pairs = list(path) if path is not None else []
    macs = 0
    while len(operands) > 1:
        first, second = sorted((pairs.pop(0), pairs.pop(0))) if path is not None else (0, 1)
        right, left = operands.pop(second), operands.pop(first)
        needed = set(output).union(*operands)
        met = {
            label: size
            for label, size in {**left, **right}.items()
            if label in needed or (label in left and label in right)
        }
        macs += prod(met.values())
        result = {label: size for label, size in met.items() if label in needed}
        operands.insert(len(operands) if path is not None else 0, result)
    return macs


def _subscripts(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[list[str], str]:
    """Subscripts of each operand and of the output, an ellipsis spelled out in free letters."""
    equation = equation.replace(" ", "")
    left, arrow, output = equation.partition("->")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    terms, widest = [], 0
    for term, shape in zip(left.split(","), shapes, strict=True):
        hidden = len(shape) - len(term.replace("...", "")) if "..." in term else 0
        widest = max(widest, hidden)
        terms.append((term, hidden))
    spelled = "".join(free[:widest])
    if not arrow:
        single = sorted(letter for letter in set(left) - set(",.") if left.count(letter) == 1)
        output = "..." + "".join(single)
    replaced = [term.replace("...", spelled[widest - hidden :]) for term, hidden in terms]
    return replaced, output.replace("...", spelled)
