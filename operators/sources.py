"""The code of operators: which files define one, and a hash of what they do."""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import itertools
import sys
import tokenize
from pathlib import Path

from operators.interface import AttentionOperator

_LAYOUT = frozenset({tokenize.COMMENT, tokenize.NL})
_STARTS = frozenset({tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT})


def source_hash(operator: type[AttentionOperator]) -> str:
    """Hash of the code that defines `operator`: its own file, its bases', and those of its package that it uses.

    Comments, docstrings and empty lines are no part of it: what is measured stays valid where they change.
    """
    package = operator.__module__.partition(".")[0]
    pending = {cls.__module__ for cls in operator.__mro__ if issubclass(cls, AttentionOperator)}
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        seen.add(name)
        values = vars(sys.modules[name]).values()
        used = {value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None) for value in values}
        pending |= {module for module in used if module and module.startswith(f"{package}.")} - seen
    digest = hashlib.sha256()
    for name in sorted(seen):
        file = getattr(sys.modules[name], "__file__", None)
        digest.update(_code(Path(file).read_bytes()) if file else name.encode())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def _code(content: bytes) -> bytes:
    """What of a file's content is code; all of it where that is not Python."""
    try:
        return without_prose(content.decode("utf-8")).encode()
    except (UnicodeDecodeError, SyntaxError, tokenize.TokenError):
        return content


def without_prose(source: str) -> str:
    r"""`source` without comments, texts that are statements of their own, empty lines and spaces at the ends of lines.

    Raises:
        SyntaxError, tokenize.TokenError: if it is not Python.

    Example:
        >>> without_prose('def f():\n    "One."\n\n    return 1  # one\n')
        'def f():\n    return 1\n'
    """
    lines = source.splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    significant = [token for token in tokens if token.type not in _LAYOUT]
    spans = [token for token in tokens if token.type == tokenize.COMMENT]
    start = tokenize.TokenInfo(tokenize.NEWLINE, "", (0, 0), (0, 0), "")
    for (before, token), (_, after) in itertools.pairwise(itertools.pairwise([start, *significant])):
        if token.type == tokenize.STRING and before.type in _STARTS and after.type == tokenize.NEWLINE:
            spans.append(token)
    # from the end, so that what is cut moves no place that comes later
    for token in sorted(spans, key=lambda item: item.start, reverse=True):
        (top, left), (bottom, right) = token.start, token.end
        lines[top - 1 : bottom] = [lines[top - 1][:left] + lines[bottom - 1][right:]]
    return "".join(f"{line.rstrip()}\n" for line in lines if line.strip())
