"""Measures the roof of the machine in a process of its own, once for each environment of a results folder."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from attnbench import processes
from attnbench.machine import Machine, read_machine, write_machine
from attnbench.measuring.roofline import measure_machine

_PATIENCE = 120.0
"""Seconds that the process may take to start and to measure; it needs a few."""


def calibrate(folder: Path, environment: str, device: str, dtypes: Sequence[str], seconds: float) -> None:
    """Sees to it that the folder holds the matrix rates of `dtypes` and the bandwidth of the environment.

    What is there is not measured again. A machine that cannot be measured costs its roofline, not the run: the file
    says why.

    Raises:
        UsageError: if the folder cannot be written.
    """
    known = read_machine(folder, environment)
    rates, bandwidth = known.get("matrix", {}), known.get("copy", {})
    missing = [dtype for dtype in dict.fromkeys(dtypes) if "gflops" not in rates.get(dtype, {})]
    if not missing and "gb_per_s" in bandwidth:
        return
    taken = _measure_apart(device, missing, seconds)
    machine: Machine = {
        "environment": environment,
        "device": device,
        "measured": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "matrix": {**rates, **taken["matrix"]},
        "copy": bandwidth if "gb_per_s" in bandwidth else taken["copy"],
    }
    write_machine(folder, environment, machine)


def _measure_apart(device: str, dtypes: Sequence[str], seconds: float) -> dict[str, Any]:
    """`measure_machine` in a process that takes its memory and its device with it when it ends."""
    ours, theirs = processes.context().Pipe(duplex=False)
    process = processes.context().Process(target=_measure, args=(theirs, device, tuple(dtypes), seconds), daemon=True)
    process.start()
    theirs.close()
    why = f"no answer within {_PATIENCE:g} s"
    try:
        if ours.poll(_PATIENCE):
            taken: dict[str, Any] = ours.recv()
            return taken
    except (EOFError, ConnectionError):
        why = "the measuring process ended before it was done"
    finally:
        process.kill()
        process.join()
        ours.close()
    return {"matrix": {dtype: {"reason": why} for dtype in dtypes}, "copy": {"reason": why}}


def _measure(connection: Connection, device: str, dtypes: tuple[str, ...], seconds: float) -> None:
    connection.send(measure_machine(device, dtypes, seconds))
    connection.close()
