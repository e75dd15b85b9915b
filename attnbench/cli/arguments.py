"""What every command line shares: one-line errors, near names for unknown options, lists and sizes."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from rich.console import Console

from attnbench.config import near
from attnbench.errors import UsageError


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line, and which suggests a near name for an unknown option."""

    def __init__(self, prog: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Ends the process with one line and exit code 2."""
        raise SystemExit(complain(self.prog, message))

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parses `arguments`; an unknown option is an error that suggests a near one."""
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
            word = unknown[0].partition("=")[0]
            hint = near(word, known) if word.startswith("-") else "; options start with --"
            self.error(f"unknown option {word!r}{hint}")
        return parsed


def complain(prog: str, message: str) -> int:
    """Prints one line to the error stream and returns exit code 2."""
    print(f"{prog}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def run_command(prog: str, command: Callable[[], int], kept: str = "what was measured is kept") -> NoReturn:
    """Runs `command` and exits: what a user can mend becomes one line and code 2, Ctrl-C and SIGTERM code 130.

    Args:
        prog: name of the command in messages.
        command: returns the exit code.
        kept: what an interruption leaves, in words.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = command()
        sys.stdout.flush()
    except (UsageError, FloatingPointError) as error:
        # a training that diverges is its recipe's affair; in a comparison it is a row
        code = complain(prog, str(error))
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted; {kept}, and the same command goes on from there", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    raise SystemExit(code)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def console_of_width() -> Console:
    """A console as wide as the terminal, and 120 columns wide where there is none."""
    return Console(width=None if sys.stdout.isatty() else 120)


def words(text: str) -> list[str]:
    """Comma-separated words.

    Example:
        >>> words("ema,non_local")
        ['ema', 'non_local']
    """
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise argparse.ArgumentTypeError("expected a comma-separated list, got nothing")
    return found


def integers(text: str) -> list[int]:
    """Comma-separated positive integers.

    Example:
        >>> integers("64,512")
        [64, 512]
    """
    try:
        found = [int(word) for word in words(text)]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"expected positive integers such as 1,2,4, got {text!r}")
    return found


def size(text: str) -> tuple[int, int]:
    """A height and width.

    Example:
        >>> size("65x97")
        (65, 97)
    """
    parts = text.lower().split("x")
    if len(parts) == 1:
        parts *= 2
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 65x65, got {text!r}")
    return int(parts[0]), int(parts[1])


def sizes(text: str) -> list[tuple[int, int]]:
    """Comma-separated sizes.

    Example:
        >>> sizes("65,97x129")
        [(65, 65), (97, 129)]
    """
    return [size(word) for word in words(text)]


def positive(text: str) -> int:
    """A positive integer.

    Example:
        >>> positive("3")
        3
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """An integer from zero on.

    Example:
        >>> count("0")
        0
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer from zero on, got {text!r}")
    return int(text)


def share(text: str) -> tuple[int, int]:
    """A part of a whole.

    Example:
        >>> share("2/8")
        (2, 8)
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected PART/PARTS such as 2/8, the first part being 1, got {text!r}")
    return int(part), int(parts)


def amount(text: str) -> float:
    """A number that is not negative.

    Example:
        >>> amount("0.1")
        0.1
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number from zero on such as 0.1, got {text!r}")
    return value
