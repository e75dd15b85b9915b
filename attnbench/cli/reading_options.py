"""Options on how a trained network reads an image, shared by the commands that let one."""

from __future__ import annotations

import argparse

from attnbench.cli.arguments import amount, size, words
from attnbench.config import Inference
from attnbench.errors import UsageError
from attnbench.ranges import check_inference


def add_reading(
    parser: argparse.ArgumentParser,
    title: str = "how images are read (default: as the checkpoint says, otherwise whole and once)",
) -> argparse._ArgumentGroup:
    """Adds a group with `--whole`, `--slide`, `--stride`, `--scales` and `--flip`, and returns it."""
    group = parser.add_argument_group(title)
    group.add_argument("--whole", action="store_true", help="at once, also where a window is the default")
    group.add_argument("--slide", type=size, metavar="HxW", help="in windows of this size; their logits are averaged")
    group.add_argument(
        "--stride", type=size, metavar="HxW", help="from one window to the next (default: two thirds of the window)"
    )
    group.add_argument(
        "--scales",
        type=factors,
        metavar="X,...",
        help="factors to read at, such as 0.5,1,1.5; probabilities are averaged",
    )
    group.add_argument("--flip", action="store_true", help="read the mirrored image, too")
    return group


def asked_reading(parsed: argparse.Namespace, default: Inference) -> Inference:
    """How the command line wants images to be read.

    Args:
        parsed: arguments of a parser with `add_reading`.
        default: how checkpoint or preset want it.

    Raises:
        UsageError: if the options do not fit one another.
    """
    if parsed.whole and parsed.slide:
        raise UsageError("--whole: expected no window beside it, got --slide")
    if parsed.stride and not parsed.slide:
        raise UsageError("--stride: expected --slide beside it, got none")
    mode, window, stride = default.mode, default.crop_size, default.stride
    if parsed.whole:
        mode, window, stride = "whole", None, None
    elif parsed.slide:
        mode, window, stride = "slide", parsed.slide, parsed.stride or two_thirds(parsed.slide)
    inference = Inference(mode, window, stride, parsed.scales or default.scales, parsed.flip or default.flip)
    check_inference(inference)
    return inference


def two_thirds(window: tuple[int, int]) -> tuple[int, int]:
    """The stride that mmsegmentation's configurations have.

    Example:
        >>> two_thirds((512, 769))
        (341, 513)
    """
    height, width = (max(1, round(2 * side / 3)) for side in window)
    return height, width


def factors(text: str) -> tuple[float, ...]:
    """Comma-separated positive numbers.

    Example:
        >>> factors("0.5,1")
        (0.5, 1.0)
    """
    found = tuple(amount(word) for word in words(text))
    if not all(found):
        raise argparse.ArgumentTypeError(f"expected positive factors such as 0.5,1,1.5, got {text!r}")
    return found
