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

Step = Callable[[], object]
Clock = Callable[[], int]
Sampler = Callable[[Step, int], float]


@dataclass(frozen=True)
class Samples:
    """The raw timings of one step.

    Args:
        ms: milliseconds of one call, one value per round.
        control_ms: the control's in the same rounds.
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
    budget_s: float,
    min_rounds: int = 6,
    max_rounds: int = 200,
    target_width: float = 0.02,
    on_sample: Callable[[str], object] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, Samples]:
    """Samples all steps in turn, round after round, until their ratios to the control are known well enough.

    Each round takes one sample of each step, the control among them, and begins one step later than the round
    before. It ends when the 95 % interval of every step's median ratio to the control is at most
    `target_width` wide, relative to the median, or when the budget is spent.

    Args:
        steps: what is timed, by name; the control is one of them.
        control: name of the step that the others are compared with.
        device: where the steps run.
        budget_s: seconds for everything, warm-up included; checked after each round.
        min_rounds: rounds that are taken whatever they cost.
        max_rounds: most rounds.
        target_width: relative width of the interval that is narrow enough.
        on_sample: told the name of a step before its warm-up and each of its samples, for a supervising
            process.
        clock: nanoseconds that never go back; times the budget, and on a CPU the samples.

    Returns:
        The raw samples of each step, the control included.

    Raises:
        ValueError: if the control is not among the steps, or the numbers of rounds do not fit together.
    """
    if control not in steps:
        raise ValueError(f"round_robin: expected the control among the steps {sorted(steps)}, got {control!r}")
    if not 1 <= min_rounds <= max_rounds:
        raise ValueError(f"round_robin: expected 1 <= min_rounds <= max_rounds, got {min_rounds} and {max_rounds}")
    announce = on_sample or (lambda _: None)
    sample = cuda_sampler(device) if device.type == "cuda" else cpu_sampler(clock)
    deadline = clock() + int(budget_s * 1e9)
    with paused_collector():
        calls = {}
        for name, step in steps.items():
            announce(name)
            calls[name] = _warm_up(step, sample)
        names = list(steps)
        taken: dict[str, list[float]] = {name: [] for name in names}
        for rounds in range(1, max_rounds + 1):
            # New cycles of Python objects may hold tensors; to collect the youngest generation is quick.
            gc.collect(0)
            for name in names:
                announce(name)
                taken[name].append(sample(steps[name], calls[name]))
            names.append(names.pop(0))
            if rounds >= min_rounds and (clock() >= deadline or _settled(taken, control, target_width)):
                break
    reference = tuple(taken[control])
    return {name: Samples(tuple(taken[name]), reference, calls[name]) for name in steps}


def _warm_up(step: Step, sample: Sampler) -> int:
    """Runs a step until it is warm; returns how many calls make a sample."""
    sample(step, WARM_UP_CALLS)
    return min(MAX_CALLS, math.ceil(SAMPLE_MS / max(sample(step, 1), SAMPLE_MS / MAX_CALLS)))


def _settled(taken: Mapping[str, list[float]], control: str, target_width: float) -> bool:
    return all(
        summarise_ratio(values, taken[control]).width <= target_width
        for name, values in taken.items()
        if name != control
    )
