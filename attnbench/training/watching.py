"""What a training run says about itself: each step as it was, and from the steps loss, rates and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")

_MEMORY = 0.95
"""Weight of what was before in the smoothed loss: the last twenty iterations or so count."""


@dataclass(frozen=True)
class Step:
    """One iteration of training.

    Args:
        iteration: iterations done, this one included.
        iterations: iterations in all.
        loss: the loss.
        learning_rate: of the first group of parameters, in this iteration.
        images: images of the batch, on all processes.
        waited_s: seconds that passed until the batch was there.
        step_s: seconds of the whole iteration, those included.
    """

    iteration: int
    iterations: int
    loss: float
    learning_rate: float
    images: int
    waited_s: float
    step_s: float


Watcher = Callable[[Step], None]
"""Called after each iteration."""


def timed(batches: Iterable[_T]) -> Iterator[tuple[_T, float]]:
    """Each batch, and the seconds that passed until it was there.

    Example:
        >>> [(batch, waited >= 0) for batch, waited in timed("ab")]
        [('a', True), ('b', True)]
    """
    source = iter(batches)
    while True:
        began = time.perf_counter()
        try:
            batch = next(source)
        except StopIteration:
            return
        yield batch, time.perf_counter() - began


class Watch:
    """Sums steps up.

    Example:
        >>> watch = Watch()
        >>> for iteration in (1, 2):
        ...     watch(Step(iteration, 4, 0.5, 0.1, images=8, waited_s=0.5, step_s=2.0))
        >>> watch.images_per_s, watch.waiting_share, watch.left_s
        (4.0, 0.25, 4.0)
    """

    def __init__(self) -> None:
        self.last: Step | None = None
        self._steps = 0
        self._images = 0
        self._waited = 0.0
        self._seconds = 0.0
        self._loss = 0.0

    def __call__(self, step: Step) -> None:
        """Takes one step."""
        self.last = step
        self._steps += 1
        self._images += step.images
        self._waited += step.waited_s
        self._seconds += step.step_s
        self._loss = _MEMORY * self._loss + (1 - _MEMORY) * step.loss

    @property
    def steps(self) -> int:
        """How many there were."""
        return self._steps

    @property
    def loss(self) -> float:
        """Loss, smoothed: `sum_t m^(T-t) loss_t / sum_t m^(T-t)` with `m = 0.95`."""
        return self._loss / (1 - _MEMORY**self._steps)

    @property
    def images_per_s(self) -> float:
        """Images per second since the first iteration began."""
        return self._images / self._seconds if self._seconds else 0.0

    @property
    def waiting_share(self) -> float:
        """Share of the time that passed while the next batch was not there."""
        return self._waited / self._seconds if self._seconds else 0.0

    @property
    def left_s(self) -> float:
        """Seconds left, if the rest is as fast as what was done."""
        return (self.last.iterations - self.last.iteration) * self._seconds / self._steps if self.last else 0.0

    def told(self) -> dict[str, Any]:
        """What is shown of the run, as plain data: a message to another process.

        Raises:
            RuntimeError: before the first step.
        """
        if self.last is None:
            raise RuntimeError("Watch: expected a step before anything is told, got none")
        return {
            "done": self.last.iteration,
            "total": self.last.iterations,
            "loss": self.loss,
            "learning_rate": self.last.learning_rate,
            "images_per_s": self.images_per_s,
            "data_wait_share": self.waiting_share,
            "left_s": self.left_s,
        }

    def fields(self) -> dict[str, float]:
        """Fields of a record: nothing where there was no step."""
        if self.last is None:
            return {}
        return {
            "train_images_per_s": round(self.images_per_s, 3),
            "data_wait_share": round(min(self.waiting_share, 1.0), 5),
        }
