"""The roof of a machine: how fast it multiplies matrices, and how fast it copies memory."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch

from attnbench.measuring import paused_collector
from attnbench.measuring.latency import cpu_sampler, cuda_sampler

_SIDES = {"cpu": (256, 512, 1024, 2048, 4096), "cuda": (1024, 2048, 4096, 8192, 16384)}
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
_CHUNKS = 8
_MIN_SAMPLES = 3
_MAX_SAMPLES = 15

Step = Callable[[], object]


def measure_machine(device: str, dtypes: Sequence[str], seconds: float = 1.0) -> dict[str, Any]:
    """Matrix rate of each type and bandwidth of a large copy, as plain data.

    The matrix rate is the largest, over square products of several sizes, of `2 n^3` by the shortest time; the
    bandwidth is the bytes that a copy reads and writes by its shortest time, eighth after eighth of a large block. A
    roof is what the machine can do at best, and all that disturbs it makes it slower. What cannot be measured says why.

    Args:
        device: `"cpu"` or `"cuda"`.
        dtypes: floating-point types, as torch names them.
        seconds: about how long each rate and the bandwidth may take; at least one size is measured.

    Returns:
        `matrix` by type (`gflops`, `side`, `samples_ms` by side) and `copy` (`gb_per_s`, `bytes`, `samples_ms`).

    Example:
        >>> measured = measure_machine("cpu", ["float32"], 0.01)
        >>> measured["matrix"]["float32"]["gflops"] > 0, measured["copy"]["gb_per_s"] > 0
        (True, True)
    """
    place = torch.device(device)
    with torch.no_grad(), paused_collector():
        matrix = {dtype: _or_reason(functools.partial(_matrix_rate, place, dtype, seconds)) for dtype in dtypes}
        return {"matrix": matrix, "copy": _or_reason(functools.partial(_copy_rate, place, seconds))}


def _or_reason(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is measured, or why it is not: a type that the machine cannot multiply, memory that is not there."""
    try:
        return measure()
    except (RuntimeError, MemoryError) as error:
        return {"reason": str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}


def _matrix_rate(device: torch.device, dtype: str, seconds: float) -> dict[str, Any]:
    taken: dict[int, list[float]] = {}
    deadline = time.perf_counter() + seconds
    for side in _SIDES[device.type]:
        if taken and time.perf_counter() + _predicted(taken, side) > deadline:
            break
        left, right = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(left)
        taken[side] = _samples(functools.partial(torch.mm, left, right, out=out), device, deadline)
    gflops = {side: 2 * side**3 / min(ms) / 1e6 for side, ms in taken.items()}
    best = max(gflops, key=gflops.__getitem__)
    return {
        "gflops": round(gflops[best], 3),
        "side": best,
        "samples_ms": {str(side): [round(value, 6) for value in ms] for side, ms in taken.items()},
    }


def _predicted(taken: dict[int, list[float]], side: int) -> float:
    """Seconds of the fewest samples of a product and its warm-up, if it ran as fast as the last."""
    last = max(taken)
    return (_MIN_SAMPLES + 1) * min(taken[last]) / 1e3 * (side / last) ** 3


def _copy_rate(device: torch.device, seconds: float) -> dict[str, Any]:
    size = _copy_size(device)
    source = torch.ones(_CHUNKS, size // _CHUNKS, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    # Chunk after chunk: when one comes round again, the others have driven it out of every cache.
    chunks = itertools.cycle(range(_CHUNKS))

    def copy() -> None:
        chunk = next(chunks)
        target[chunk].copy_(source[chunk])

    ms = _samples(copy, device, time.perf_counter() + seconds)
    rate = 2 * (size // _CHUNKS) / min(ms) / 1e6
    return {"gb_per_s": round(rate, 3), "bytes": size, "samples_ms": [round(value, 6) for value in ms]}


def _copy_size(device: torch.device) -> int:
    """Several times the last cache, as far as memory allows."""
    wanted = _COPY_BYTES[device.type]
    if device.type == "cuda":
        return int(min(wanted, torch.cuda.mem_get_info(device)[0] // 4))
    return int(min(max(wanted, 4 * _last_cache()), psutil.virtual_memory().available // 4))


def _last_cache() -> int:
    try:
        return max(os.sysconf("SC_LEVEL3_CACHE_SIZE"), 0)
    except (AttributeError, ValueError, OSError):
        return 0


def _samples(step: Step, device: torch.device, deadline: float) -> list[float]:
    """Milliseconds of single calls after one that warms up, until there are enough or the time is spent."""
    sample = cuda_sampler(device) if device.type == "cuda" else cpu_sampler()
    sample(step, 1)
    taken: list[float] = []
    while len(taken) < _MIN_SAMPLES or (len(taken) < _MAX_SAMPLES and time.perf_counter() < deadline):
        taken.append(sample(step, 1))
    return taken
