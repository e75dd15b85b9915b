"""What a machine can do at best, beside the environment that it belongs to: `machine/<environment>.json`.

The rates are measured, so they are no part of the fingerprint: an environment keeps its hash, and a run that finds the
file of its environment does not measure again (docs/decisions/0006-work-and-roofline.md).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnbench.errors import UsageError

Machine = dict[str, Any]


def _path(folder: Path, environment: str) -> Path:
    return folder / "machine" / f"{environment}.json"


def read_machine(folder: Path, environment: str) -> Machine:
    """The measured rates of an environment; empty where there are none that can be read."""
    try:
        found = json.loads(_path(folder, environment).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_machine(folder: Path, environment: str, machine: Mapping[str, Any]) -> None:
    """Stores the rates of an environment in place of those that were there.

    Raises:
        UsageError: if the folder cannot be written.
    """
    path = _path(folder, environment)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(machine, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UsageError(
            f"results folder {str(folder)!r}: expected a folder that can be written, got {error.strerror or error}"
        ) from error


def rates(machine: Mapping[str, Any]) -> dict[str, Any]:
    """The rates alone, without what they were computed from.

    Example:
        >>> rates({"matrix": {"float32": {"gflops": 81.5, "samples_ms": {}}}, "copy": {"gb_per_s": 9.5, "bytes": 1}})
        {'matrix_gflops': {'float32': 81.5}, 'copy_gb_per_s': 9.5}
    """
    found: dict[str, Any] = {}
    matrix = _table(machine.get("matrix"))
    gflops = {dtype: _table(taken).get("gflops") for dtype, taken in matrix.items()}
    known = {dtype: rate for dtype, rate in gflops.items() if _is_rate(rate)}
    if known:
        found["matrix_gflops"] = known
    bandwidth = _table(machine.get("copy")).get("gb_per_s")
    if _is_rate(bandwidth):
        found["copy_gb_per_s"] = bandwidth
    reasons = {key: _table(machine.get(key)).get("reason") for key in ("copy",)}
    reasons |= {dtype: _table(taken).get("reason") for dtype, taken in matrix.items()}
    told = {key: reason for key, reason in reasons.items() if reason}
    if told:
        found["not_measured"] = told
    return found


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
