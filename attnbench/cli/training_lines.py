"""How a training run looks while it goes on: a line that lives in a terminal, and one every half minute in a log."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from attnbench.training.watching import Step

SILENCE = 30.0
"""Seconds after which a log without a live line says how far a training run is."""


_PATIENCE = 2.0
"""Seconds that a check of files may take without a word."""


def live(console: Console) -> Progress:
    """A display of lines with a bar each, gone when it ends."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    )


def clock(seconds: float) -> str:
    """Seconds as a clock shows them.

    Example:
        >>> clock(7384), clock(61)
        ('2:03:04', '1:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rates(told: Mapping[str, Any]) -> str:
    """Images per second and the share of waiting of a run, as `Watch.told` or a record has them.

    Example:
        >>> rates({"images_per_s": 12.34, "data_wait_share": 0.0123})
        '12.3 images/s, 1.2 % waiting for data'
    """
    speed = told.get("images_per_s", told.get("train_images_per_s", 0.0))
    return f"{speed:.3g} images/s, {100 * told['data_wait_share']:.1f} % waiting for data"


def describe_training(told: Mapping[str, Any]) -> str:
    """What `Watch.told` has, in words; without a loss, features are computed that training will need.

    Example:
        >>> describe_training(
        ...     {"loss": 0.51234, "learning_rate": 0.01, "images_per_s": 8, "data_wait_share": 0.01, "left_s": 75}
        ... )
        'loss 0.512, lr 0.01, 8 images/s, 1.0 % waiting for data, 1:15 left'
    """
    if "loss" not in told:
        return "features of the frozen backbone"
    state = f"loss {told['loss']:.3f}, lr {told['learning_rate']:.3g}"
    return f"{state}, {rates(told)}, {clock(told['left_s'])} left"


class TrainingLines:
    """A live line for each training run that goes on.

    Args:
        display: where the lines are.
    """

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._lines: dict[Hashable, TaskID] = {}

    def show(self, run: Hashable, title: str, told: Mapping[str, Any]) -> None:
        """Shows how far `run` is, on a line of its own."""
        if run not in self._lines:
            self._lines[run] = self._display.add_task(title, total=told["total"], note="")
        line = self._lines[run]
        self._display.update(line, completed=told["done"], total=told["total"], note=describe_training(told))

    def end(self, run: Hashable) -> None:
        """Takes the line of `run` away, if it has one."""
        line = self._lines.pop(run, None)
        if line is not None:
            self._display.remove_task(line)


class Log:
    """Lines of a log: one for each training run every half minute.

    Args:
        console: where to.
        began: monotonic time from which seconds are counted.
    """

    def __init__(self, console: Console, began: float) -> None:
        self._console = console
        self._began = began
        self._spoken: dict[Hashable, float] = {}

    def show(self, run: Hashable, title: str, told: Mapping[str, Any]) -> None:
        """Prints how far `run` is, where the last word on it is half a minute old."""
        now = time.monotonic()
        if now - self._spoken.setdefault(run, now) <= SILENCE:
            return
        self._spoken[run] = now
        line = f"{title}: {told['done']}/{told['total']}, {describe_training(told)}"
        self._console.print(f"[dim]{now - self._began:6.1f} s[/dim]  {line}", highlight=False, soft_wrap=True)

    def end(self, run: Hashable) -> None:
        """Forgets `run`: what it came to is said elsewhere."""
        self._spoken.pop(run, None)


class Checking:
    """Says that files are read, where that takes long enough to wonder.

    Args:
        console: where to.
        doing: what becomes of them.
    """

    def __init__(self, console: Console, doing: str = "images and masks checked; once, until a file changes") -> None:
        self._console = console
        self._doing = doing
        self._spoken: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Prints a line after two seconds, and another every half minute.

        Args:
            what: the split.
            done: those that are done.
            total: their number.
        """
        now = time.monotonic()
        spoken = self._spoken.setdefault(what, now - SILENCE + _PATIENCE)
        if now - spoken > SILENCE:
            self._spoken[what] = now
            self._console.print(f"{what}: {done} of {total} {self._doing}", highlight=False)


def caching(console: Console) -> Callable[[int, int], None]:
    """What says how many images have the features of a frozen backbone: `progress` of `cached_features`."""
    return functools.partial(Checking(console, "images have their features; once"), "frozen backbone")


@contextmanager
def watch_training(console: Console, title: str) -> Iterator[Callable[[Step], None]]:
    """Context in which one training run is shown; what it yields is `fit`'s `progress`.

    Args:
        console: where to.
        title: what is trained.
    """
    from attnbench.training.watching import Watch

    watch = Watch()
    with live(console) as display:
        shown = TrainingLines(display) if console.is_terminal else Log(console, time.monotonic())

        def show(step: Step) -> None:
            watch(step)
            shown.show(title, title, watch.told())

        yield show
    if watch.last is not None:
        console.print(f"{title}: {watch.last.iteration} iterations, {rates(watch.told())}", highlight=False)
