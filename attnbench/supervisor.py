"""Worker processes from the outside: lanes of trials, their messages, and what happens when a worker is lost.

A block runs in one lane or in several at a time. A lane is a list of trials and one worker process on them; a worker
that dies or falls silent costs the trial in flight, and the lane goes on with a new one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from attnbench import processes
from attnbench.config import Cost
from attnbench.errors import UsageError
from attnbench.records import Status, Trial
from attnbench.worker import Message, WorkerOptions, work

_START = 120.0
"""Seconds that a worker may take at least until its first message: a busy machine imports slowly."""


@dataclass(frozen=True)
class Limits:
    """How a block runs.

    Args:
        timeout: seconds without a message after which a worker is given up.
        lanes: worker processes at a time.
        cost: what is measured, for a block of cost trials.
    """

    timeout: float
    lanes: int = 1
    cost: Cost | None = None


@dataclass(frozen=True)
class Event:
    """What happened to one trial.

    Args:
        kind: `"present"` (its record was there), `"begin"`, `"progress"`, `"numbers"` (first figures) or `"finished"`.
        trial: the trial.
        data: the record (`present`, `finished`), figures (`numbers`), or `done` and `total` (`progress`).
    """

    kind: Literal["present", "begin", "progress", "numbers", "finished"]
    trial: Trial
    data: dict[str, Any]


def run_lanes(block: Sequence[Trial], limits: Limits, options: WorkerOptions) -> Iterator[Event]:
    """Runs `block`, its trials dealt out to `limits.lanes` lanes, and ends every worker whatever happens.

    A lane that has finished its share takes another of what waits, ever smaller ones, so that the lanes end together
    whichever trials are slow.

    Raises:
        UsageError: if a worker meets something that the user must mend.
    """
    count = min(limits.lanes, len(block))
    waiting = list(block)
    lanes = [_Lane(_take(waiting, count), limits, options) for _ in range(count)]
    try:
        while active := [lane for lane in lanes if lane.left]:
            patience = min(lane.deadline for lane in active) - time.monotonic()
            ready = wait([lane.connection for lane in active], max(patience, 0.0))
            for lane in active:
                if lane.connection in ready:
                    yield from lane.receive()
                elif time.monotonic() >= lane.deadline:
                    yield from lane.give_up()
                if waiting and not lane.left:
                    lane.go_on(_take(waiting, count))
    finally:
        for lane in lanes:
            lane.stop()


def _take(waiting: list[Trial], lanes: int) -> list[Trial]:
    """Removes the next share: half of a lane's part of what waits, or all where there is one lane.

    Example:
        >>> waiting = list("abcdefghij")
        >>> [len(_take(waiting, 2)) for _ in range(6)]
        [3, 2, 2, 1, 1, 1]
    """
    size = len(waiting) if lanes == 1 else -(-len(waiting) // (2 * lanes))
    share = waiting[:size]
    del waiting[:size]
    return share


class _Lane:
    """Trials that run one worker after the other, until none is left."""

    def __init__(self, trials: Sequence[Trial], limits: Limits, options: WorkerOptions) -> None:
        self.left = list(trials)
        self._limits = limits
        self._options = options
        self._start()

    def _start(self) -> None:
        """Starts a worker on what is left."""
        self.connection, theirs = _pipe()
        self._trials = list(self.left)
        self._flying = self._trials[0]
        self._begun: dict[Trial, tuple[str, float]] = {}
        target = (theirs, self._trials, self._limits.cost, self._options)
        # a daemon may not start the processes that load its data; every worker ends with its parent either way
        daemon = not self._options.loaders
        self._process = processes.context().Process(target=work, args=target, daemon=daemon)
        self._process.start()
        theirs.close()
        self.deadline = time.monotonic() + max(self._limits.timeout, _START)

    def go_on(self, trials: Sequence[Trial]) -> None:
        """Takes further trials after the last; a worker starts on them."""
        self.stop()
        self.left = list(trials)
        self._start()

    def receive(self) -> Iterator[Event]:
        """Takes one message, or the end of the process."""
        try:
            message: Message = self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            yield from self._lose("crashed", _describe_exit(self._process.exitcode))
            return
        self.deadline = time.monotonic() + self._limits.timeout
        trial = self._trials[message.trial]
        if message.kind == "usage":
            raise UsageError(message.data["reason"])
        if message.kind == "begin":
            self._flying = trial
            self._begun.setdefault(trial, (_now(), time.monotonic()))
            yield Event("begin", trial, {})
        elif message.kind == "numbers":
            yield Event("numbers", trial, message.data)
        elif message.kind == "progress":
            yield Event("progress", trial, message.data)
        elif message.kind == "failed":
            yield self._finish(trial, message.data["status"], {"reason": message.data["reason"]})
            if message.data["spent"]:
                self._replace()
        else:
            yield self._finish(trial, "ok", message.data)

    def give_up(self) -> Iterator[Event]:
        """Ends a silent worker."""
        self._process.kill()
        self._process.join()
        yield from self._lose("timeout", f"no sign of life for {self._limits.timeout:g} s")

    def _lose(self, status: Status, reason: str) -> Iterator[Event]:
        yield self._finish(self._flying, status, {"reason": reason})
        self._replace()

    def _replace(self) -> None:
        """Ends the worker, and starts another on what is left."""
        self._process.kill()
        self._process.join()
        self.connection.close()
        if self.left:
            self._start()

    def _finish(self, trial: Trial, status: Status, data: dict[str, Any]) -> Event:
        started, clock = self._begun.get(trial, (_now(), time.monotonic()))
        self.left.remove(trial)
        wall = round(time.monotonic() - clock, 3)
        return Event("finished", trial, {"status": status, "started": started, "wall_s": wall, **data})

    def stop(self) -> None:
        """Ends the worker: by itself if it has said all, by force if it has not."""
        if self.left:
            self._process.kill()
        self._process.join(timeout=10)
        if self._process.exitcode is None:
            self._process.kill()
        self.connection.close()


def _pipe() -> tuple[Connection, Connection]:
    ours, theirs = processes.context().Pipe(duplex=False)
    return ours, theirs


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"the worker process was ended by {name}{hint}"
    return f"the worker process ended with exit code {code}"
