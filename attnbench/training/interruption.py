"""Ctrl-C and SIGTERM as a wish that is granted between two iterations."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self


class Interruption:
    """Context in which SIGTERM and the first Ctrl-C ask to stop, and a second Ctrl-C raises at once.

    Example:
        >>> with Interruption() as interruption:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     interruption.asked()
        True
    """

    def __init__(self) -> None:
        self._asked = False
        self._interrupted = False
        self._before: dict[signal.Signals, Any] = {}

    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked

    def _take(self, number: int, _frame: FrameType | None) -> None:
        # torchrun follows the terminal's Ctrl-C with a SIGTERM of its own: that one is no second wish
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or number == signal.SIGINT
        self._asked = True

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
