"""What becomes of a training run's steps: messages to whoever started it, and TensorBoard's events where asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attnbench.training.events import Events
from attnbench.training.watching import Step, Watch

_PAUSE = 0.5
"""Seconds between two messages on a training run, at least."""


class Telling:
    """Passes on what a training run says.

    Args:
        send: takes a message: what `Watch.told` has, or `done` and `total` of images whose features are computed.
        events: TensorBoard's events of the run; none writes none.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None], events: Events | None = None) -> None:
        self.watch = Watch()
        self._send = send
        self._events = events
        self._sent = 0.0

    def step(self, step: Step) -> None:
        """Passes one iteration on; what `fit` calls."""
        self.watch(step)
        if self._events is not None:
            self._events(step)
        self._tell(self.watch.told())

    def features(self, done: int, total: int) -> None:
        """Says how many images have their features."""
        self._tell({"done": done, "total": total})

    def scores(self, scores: Mapping[str, float]) -> None:
        """Writes the scores of an evaluation behind the last step to the events."""
        if self._events is not None and self.watch.last is not None:
            self._events.scores(self.watch.last.iteration, scores)

    def _tell(self, told: dict[str, Any]) -> None:
        now = time.monotonic()
        if told["done"] == told["total"] or now - self._sent > _PAUSE:
            self._sent = now
            self._send(told)


@contextmanager
def telling(send: Callable[[dict[str, Any]], None], events: Events | None = None) -> Iterator[Telling]:
    """Context of one run, behind which its events are closed, however it ends."""
    try:
        yield Telling(send, events)
    finally:
        if events is not None:
            events.close()
