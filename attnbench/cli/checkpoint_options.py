"""Options on networks that are read from files, shared by the commands that read them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from attnbench.cli.arguments import size
from attnbench.errors import UsageError

NATIVE = "native"
"""Word for images that are read at the size of their files."""


def add_operator(parser: argparse.ArgumentParser) -> None:
    """Adds `--operator`, whose files are registered by `register`."""
    parser.add_argument(
        "--operator",
        action="append",
        metavar="FILE.py:CLASS",
        help="the operator of your own that the checkpoint was trained with",
    )


def register(references: Sequence[str] | None) -> None:
    """Registers the operators at `path/to/file.py:Class`, so that checkpoints may name them.

    Raises:
        UsageError: if there is none.
    """
    import operators

    try:
        for reference in references or ():
            operators.load_file(reference)
    except operators.BrokenOperatorError as error:
        raise UsageError(str(error)) from error


def size_or_native(text: str) -> tuple[int, int] | str:
    """A height and width, or `NATIVE`.

    Example:
        >>> size_or_native("65x97"), size_or_native("native")
        ((65, 97), 'native')
    """
    return NATIVE if text == NATIVE else size(text)


def asked_size(asked: tuple[int, int] | str | None, trained: tuple[int, int] | None) -> tuple[int, int] | None:
    """The size that images are loaded at; none keeps theirs.

    Args:
        asked: what the command line says.
        trained: what the checkpoint says.

    Example:
        >>> asked_size(None, (65, 97)), asked_size("native", (65, 97))
        ((65, 97), None)
    """
    if isinstance(asked, str):
        return None
    return asked or trained
