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
    min_rounds: int = 6,
    max_rounds: int = 200,
    target_width: float = 0.05,
    on_sample: Callable[[str], object] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, Samples]:
    """Samples all steps in turn, round after round, until their ratios to the control are known well enough.

    Each round takes one sample of each step and begins one step later than the round before. The control is sampled
    in every round, between the steps: whenever two of its own samples' time has gone by, so that each sample of a
    step lies between two of the control's, whose mean it is compared with. A step leaves the rounds when the 95 %
    interval of its median ratio to the control is at most `target_width` wide, relative to the median, or when its
    share of the time is spent.

    Args:
        steps: what is timed, by name; the control is one of them.
        control: name of the step that the others are compared with.
        device: where the steps run.
        seconds_per_step: time for the samples of each step; the control's come on top.
        min_rounds: samples that are taken of a step whatever they cost.
        max_rounds: most samples of a step.
        target_width: relative width of the interval that is narrow enough.
        on_sample: told the name of a step before its warm-up and each of its samples, for a supervising
            process.
        clock: nanoseconds that never go back; on a CPU it times the samples.

    Returns:
        The raw samples of each step. The control's are compared with themselves.

    Raises:
        ValueError: if the control is not among the steps, or the numbers of rounds do not fit together.
    """
    if control not in steps:
        raise ValueError(f"round_robin: expected the control among the steps {sorted(steps)}, got {control!r}")
    if not 1 <= min_rounds <= max_rounds:
        raise ValueError(f"round_robin: expected 1 <= min_rounds <= max_rounds, got {min_rounds} and {max_rounds}")
    announce = on_sample or (lambda _: None)
    sample = cuda_sampler(device) if device.type == "cuda" else cpu_sampler(clock)
    with paused_collector():
        series = {}
        for name, step in steps.items():
            announce(name)
            series[name] = _Series(name, step, _warm_up(step, sample))
        reference = _Control(series[control], sample, announce)
        others = [one for name, one in series.items() if name != control]
        for rounds in range(1, max_rounds + 1):
            # New cycles of Python objects may hold tensors; to collect the youngest generation is quick.
            gc.collect(0)
            if rounds == 1 or not others:
                reference.take()
            for one in others:
                if not one.done:
                    announce(one.name)
                    one.take(sample)
                    reference.follow(one)
            reference.close()
            others = [*others[1:], *others[:1]]
            for one in others:
                one.done = rounds >= min_rounds and (
                    one.ms_spent >= 1e3 * seconds_per_step or one.width <= target_width
                )
            if rounds >= min_rounds and all(one.done for one in others):
                break
    return {name: one.samples() for name, one in series.items()}


class _Series:
    """The samples of one step, and the control's beside them."""

    def __init__(self, name: str, step: Step, calls: int) -> None:
        self.name, self.step, self.calls = name, step, calls
        self.ms: list[float] = []
        self.control_ms: list[float] = []
        self.ms_spent = 0.0
        self.done = False

    def take(self, sample: Sampler) -> None:
        self.ms.append(sample(self.step, self.calls))
        self.ms_spent += self.ms[-1] * self.calls

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


def _warm_up(step: Step, sample: Sampler) -> int:
    """Runs a step until it is warm; returns how many calls make a sample."""
    sample(step, WARM_UP_CALLS)
    return min(MAX_CALLS, math.ceil(SAMPLE_MS / max(sample(step, 1), SAMPLE_MS / MAX_CALLS)))
