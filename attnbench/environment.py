"""Fingerprint of the machine and the software that a figure was measured with."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from attnbench import allocator
from attnbench.errors import UsageError

_GIB = 2**30
_BUILD_FLAGS = re.compile(r"\b(BLAS_INFO|LAPACK_INFO|USE_MKL|USE_MKLDNN|USE_OPENMP|PERF_WITH_AVX\w*)=(\w+)")
_BUILD_LIBRARIES = {
    "mkl": re.compile(r"Math Kernel Library Version (\S+)"),
    "onednn": re.compile(r"MKL-DNN v(\S+)"),
    "openmp": re.compile(r"OpenMP (\d+)"),
}


def fingerprint(device: str) -> dict[str, Any]:
    """What a measurement on `device` depends on, as plain data: hardware, libraries, threads, switches.

    It names no host, no user and no path, and two calls in one process agree.

    Args:
        device: `"cpu"`, or `"cuda"` with or without an index.

    Raises:
        UsageError: if the device does not exist here.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"fingerprint: expected a device like 'cpu' or 'cuda', got {device!r}") from error
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"fingerprint: expected device 'cpu' or 'cuda', got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"fingerprint: expected a CUDA device for {device!r}, got none that torch can use")
    environment: dict[str, Any] = {
        "device": kind,
        "cpu": _cpu(),
        "os": {"system": platform.system(), "kernel": platform.release(), "machine": platform.machine()},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "torch_build": _torch_build(),
        "allocator": allocator.policy(),
        "threads": {"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()},
        "numerics": {
            "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
    }
    if kind == "cuda":
        environment["cuda"] = _cuda(torch.device(device))
    return environment


def _cpu() -> dict[str, Any]:
    return {
        "model": _cpu_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(logical=True),
        "available_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_gib": round(psutil.virtual_memory().total / _GIB),
    }


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", information.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _torch_build() -> dict[str, str]:
    """The linear algebra that torch was built with; its full description names paths of the build machine."""
    described = torch.__config__.show()
    flags = {name.lower(): value for name, value in _BUILD_FLAGS.findall(described)}
    libraries = {name: found[1] for name, pattern in _BUILD_LIBRARIES.items() if (found := pattern.search(described))}
    return {**flags, **libraries}


def _cuda(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / _GIB),
        "multiprocessors": properties.multi_processor_count,
        "driver": _driver(),
        "runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
    }


@functools.cache
def _driver() -> str:
    answer = _nvidia_smi("driver_version", 0)
    return answer[0] if answer else "unknown"


def gpu_state(device: str) -> dict[str, float]:
    """Clocks and power of a GPU at this moment, read and never set; empty for a CPU, or where they cannot be read.

    Returns:
        `gpu_clock_mhz`, `gpu_memory_clock_mhz`, `gpu_power_w`, `gpu_temperature_c`, each where the driver tells it.
    """
    chosen = torch.device(device)
    if chosen.type != "cuda":
        return {}
    answer = _nvidia_smi(",".join(_GPU_STATE), chosen.index or 0)
    state: dict[str, float] = {}
    for name, text in zip(_GPU_STATE.values(), answer, strict=False):
        try:
            state[name] = float(text)
        except ValueError:
            continue
    return state


_GPU_STATE = {
    "clocks.sm": "gpu_clock_mhz",
    "clocks.mem": "gpu_memory_clock_mhz",
    "power.draw": "gpu_power_w",
    "temperature.gpu": "gpu_temperature_c",
}
"""What the driver is asked for -> name and unit in records."""


def _nvidia_smi(query: str, index: int) -> list[str]:
    """The driver's answers for one GPU; none where it cannot be asked."""
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [part.strip() for part in answer.split(",")]


def environment_hash(environment: Mapping[str, Any]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the environment's canonical JSON.

    Example:
        >>> environment_hash({"b": 1, "a": 2}) == environment_hash({"a": 2, "b": 1})
        True
    """
    canonical = json.dumps(environment, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@functools.cache
def commit() -> str:
    """The git commit of this source tree.

    Returns:
        40 hexadecimal digits, with `+changes` where tracked files outside results/ differ from it; `unknown` where
        this package is not tracked in a git checkout.
    """
    return commit_of(Path(__file__))


def commit_of(file: Path) -> str:
    """As `commit`, for the checkout of the project that has `file` in one of its packages.

    A file that git does not track has none, such as one installed into an environment inside someone's checkout.
    """
    root = file.resolve().parent.parent
    if _git(root, "ls-files", "--error-unmatch", "--", str(file.resolve())) is None:
        return "unknown"
    head = (_git(root, "rev-parse", "HEAD") or "").strip()
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
    if not re.fullmatch(r"[0-9a-f]{40}", head) or changed is None:
        return "unknown"
    return f"{head}+changes" if changed.strip() else head


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or none where it fails or is not installed."""
    try:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout if answer.returncode == 0 else None
