"""Latency, sampled round robin in alternation with a control."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from attnbench.measuring import paused_collector
from attnbench.statistics import summarise_ratio

SAMPLE_MS = 2.0
"""A sample repeats a call until it lasts about this long, so that reading the clock does not show in it."""

MAX_CALLS = 10_000
WARM_UP_CALLS = 1
ROUND_MS = 10.0
"""What a round gives each step of its time: a step that costs more takes part in some rounds, evenly spread."""

STEADY = 4
"""Samples in a row behind which the interval has to be narrow enough: once is luck."""

_LEAST_FLUSH = 32 * 2**20
_CONTROL_SPACING = 2.0
"""Time between two samples of the control, in samples of the control: it takes a third of the time at most."""

Step = Callable[[], object]
Clock = Callable[[], int]
Sampler = Callable[[Step, int], float]


@dataclass(frozen=True)
class Samples:
    """The raw timings of one step.

    Args:
        ms: milliseconds of one call, one value per round.
        control_ms: the control's, as the mean of its samples before and after each of these.
        calls_per_sample: how many calls each value is the mean of.
    """

    ms: tuple[float, ...]
    control_ms: tuple[float, ...]
    calls_per_sample: int


def cpu_sampler(clock: Clock = time.perf_counter_ns) -> Sampler:
    """Times calls by the wall clock."""

    def sample(step: Step, calls: int) -> float:
        start = clock()
        for _ in range(calls):
            step()
        # Less than one tick is no time at all to the clock, but a latency of zero has no ratio.
        return max(clock() - start, 1) / calls / 1e6

    return sample


def cuda_sampler(device: torch.device) -> Sampler:
    """Times calls by events on the device's stream, synchronised before and after.

    Between samples twice the size of the L2 cache is overwritten, so that no step finds what the one before it, or
    its own last sample, left there.
    """
    cache: int = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    flush = torch.empty(2 * max(cache, _LEAST_FLUSH), dtype=torch.int8, device=device)

    def sample(step: Step, calls: int) -> float:
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            flush.zero_()
            torch.cuda.synchronize()
            start.record()
            for _ in range(calls):
                step()
            end.record()
            torch.cuda.synchronize()
            return float(start.elapsed_time(end)) / calls

    return sample


def round_robin(
    steps: Mapping[str, Step],
    *,
    control: str,
    device: torch.device,
    seconds_per_step: float,
    min_samples: int = 6,
    max_rounds: int = 200,
    target_width: float = 0.05,
    on_sample: Callable[[str], object] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, Samples]:
    """Samples all steps in turn, round after round, until their ratios to the control are known well enough.

    There is a round for every `ROUND_MS` of the time of a step. A cheap step takes a sample in each of them, a dear
    one in as many as its time is good for, spread evenly over all rounds, so that a machine's moods, which last for
    seconds, fall on all alike. A round begins one step later than the one before. The control is sampled in every
    round, between the steps: whenever two of its own samples' time has gone by, so that each sample of a step lies
    between two of the control's, whose mean it is compared with. From half of the rounds on, a step leaves them when
    the 95 % interval of its median ratio to the control was at most `target_width` wide, relative to the median,
    behind each of its last `STEADY` samples.

    Args:
        steps: what is timed, by name; the control is one of them.
        control: name of the step that the others are compared with.
        device: where the steps run.
        seconds_per_step: time for the samples of each step; the control's come on top.
        min_samples: samples that are taken of a step whatever they cost.
        max_rounds: most rounds, and so most samples of a step.
        target_width: relative width of the interval that is narrow enough.
        on_sample: told the name of a step before its warm-up and each of its samples, for a supervising
            process.
        clock: nanoseconds that never go back; on a CPU it times the samples.

    Returns:
        The raw samples of each step. The control's are compared with themselves.

    Raises:
        ValueError: if the control is not among the steps, or there are fewer rounds than samples to take.
    """
    if control not in steps:
        raise ValueError(f"round_robin: expected the control among the steps {sorted(steps)}, got {control!r}")
    if not 1 <= min_samples <= max_rounds:
        raise ValueError(f"round_robin: expected 1 <= min_samples <= max_rounds, got {min_samples} and {max_rounds}")
    rounds = max(min_samples, min(max_rounds, math.ceil(1e3 * seconds_per_step / ROUND_MS)))
    announce = on_sample or (lambda _: None)
    sample = cuda_sampler(device) if device.type == "cuda" else cpu_sampler(clock)
    with paused_collector():
        series = {}
        for place, (name, step) in enumerate(steps.items()):
            announce(name)
            series[name] = _Series(name, step, place / len(steps))
            series[name].warm_up(sample)
        reference = _Control(series[control], sample, announce)
        others = [one for name, one in series.items() if name != control]
        for turn in range(1, rounds + 1):
            # New cycles of Python objects may hold tensors; to collect the youngest generation is quick.
            gc.collect(0)
            if turn == 1 or not others:
                reference.take()
            for one in others:
                planned = max(min_samples, min(rounds, 1e3 * seconds_per_step / one.ms_of_a_sample))
                if not one.done and one.due(planned * turn / rounds):
                    announce(one.name)
                    one.take(sample)
                    reference.follow(one)
            reference.close()
            others = [*others[1:], *others[:1]]
            if 2 * turn >= rounds:
                for one in others:
                    one.look(target_width)
                    one.done = one.narrow >= STEADY and len(one.ms) >= min_samples
            if turn >= min_samples and all(one.done for one in others):
                break
    return {name: one.samples() for name, one in series.items()}


class _Series:
    """The samples of one step, and the control's beside them.

    Args:
        name: of the step.
        step: what is sampled.
        offset: part of a sample, from 0 to 1, by which it is late: steps of equal cost are not due in the same rounds.
    """

    def __init__(self, name: str, step: Step, offset: float) -> None:
        self.name, self.step, self._offset = name, step, offset
        self.calls = 1
        self.ms: list[float] = []
        self.control_ms: list[float] = []
        self.done = False
        self.narrow = 0
        self._looked = 0
        self._estimate = 0.0

    def warm_up(self, sample: Sampler) -> None:
        """Runs the step until it is warm, and finds how many calls make a sample."""
        sample(self.step, WARM_UP_CALLS)
        ms = max(sample(self.step, 1), SAMPLE_MS / MAX_CALLS)
        self.calls = min(MAX_CALLS, math.ceil(SAMPLE_MS / ms))
        self._estimate = ms * self.calls

    def take(self, sample: Sampler) -> None:
        self.ms.append(sample(self.step, self.calls))

    def due(self, expected: float) -> bool:
        """Whether fewer samples were taken than `expected` by now."""
        return len(self.ms) + self._offset < expected

    def look(self, target_width: float) -> None:
        """Counts the samples in a row behind which the interval was narrow enough."""
        if len(self.ms) > self._looked:
            self._looked = len(self.ms)
            self.narrow = self.narrow + 1 if self.width <= target_width else 0

    @property
    def ms_of_a_sample(self) -> float:
        """What a sample costs, on average; before there is one, what the warm-up says."""
        return self.calls * sum(self.ms) / len(self.ms) if self.ms else self._estimate

    @property
    def width(self) -> float:
        return summarise_ratio(self.ms, self.control_ms).width

    def samples(self) -> Samples:
        return Samples(tuple(self.ms), tuple(self.control_ms or self.ms), self.calls)


class _Control:
    """Takes the control's samples between the others', and hands each of those the mean of its two neighbours."""

    def __init__(self, series: _Series, sample: Sampler, announce: Callable[[str], object]) -> None:
        self._series, self._sample, self._announce = series, sample, announce
        self._waiting: list[_Series] = []
        self._ms_since = 0.0

    def take(self) -> None:
        series = self._series
        self._announce(series.name)
        series.take(self._sample)
        for one in self._waiting:
            one.control_ms.append((series.ms[-2] + series.ms[-1]) / 2)
        self._waiting.clear()
        self._ms_since = 0.0

    def close(self) -> None:
        """Samples the control if a step waits for it."""
        if self._waiting:
            self.take()

    def follow(self, one: _Series) -> None:
        """Notes that a step was sampled; the control is due when two of its own samples' time has gone by."""
        self._waiting.append(one)
        self._ms_since += one.ms[-1] * one.calls
        if self._ms_since >= _CONTROL_SPACING * self._series.ms[-1] * self._series.calls:
            self.take()
