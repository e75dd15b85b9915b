"""The roofline, derived from records: the least time that work can take on a machine, and the share that is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from attnbench.records import Record
from attnbench.report.rows import MODES
from attnbench.statistics import median

_WORK = ("elementwise", "bytes_compulsory")
_FIGURES = ("bytes_compulsory", "bytes_moved", "operations", "intensity", "bound", "bound_ms", "gflops", "reach")


@dataclass(frozen=True)
class Roof:
    """What a machine does at best.

    Args:
        operations_per_s: its matrix rate in the type of the row.
        bytes_per_s: its bandwidth of a large copy.
    """

    operations_per_s: float
    bytes_per_s: float

    @property
    def ridge(self) -> float:
        """Operations per byte from which the matrix rate is the bound."""
        return self.operations_per_s / self.bytes_per_s

    def at(self, intensity: float) -> float:
        """Operations per second that can be reached at an intensity.

        Example:
            >>> Roof(100.0, 10.0).at(2.0), Roof(100.0, 10.0).at(50.0)
            (20.0, 100.0)
        """
        return min(self.operations_per_s, intensity * self.bytes_per_s)


@dataclass(frozen=True)
class Bound:
    """The least time of a step.

    Args:
        ms: milliseconds.
        kind: what it is bound by.
    """

    ms: float
    kind: Literal["compute", "memory"]


def roof_of(environment: Mapping[str, Any], dtype: str) -> Roof | None:
    """The measured roof of an environment for a type; none where it was not measured."""
    measured = environment.get("roofline")
    if not isinstance(measured, Mapping):
        return None
    gflops = measured.get("matrix_gflops", {}).get(dtype)
    bandwidth = measured.get("copy_gb_per_s")
    return Roof(gflops * 1e9, bandwidth * 1e9) if gflops and bandwidth else None


def bound_of(operations: int, moved: int, roof: Roof) -> Bound:
    """The larger of the times that the operations and the bytes take at best.

    Example:
        >>> bound_of(1_000_000, 1_000, Roof(1e9, 1e9))
        Bound(ms=1.0, kind='compute')
    """
    compute, memory = operations / roof.operations_per_s, moved / roof.bytes_per_s
    return Bound(1e3 * max(compute, memory), "compute" if compute >= memory else "memory")


def operations_of(record: Mapping[str, Any]) -> int:
    """`2 x MACs + elementwise operations` of one step, the backward pass included where it has one.

    Example:
        >>> operations_of({"macs": 10, "elementwise": 3, "macs_backward": 20, "elementwise_backward": 4})
        67
    """
    macs = record["macs"] + record.get("macs_backward", 0)
    elementwise = record["elementwise"] + record.get("elementwise_backward", 0)
    return int(2 * macs + elementwise)


def work_columns(modes: Mapping[str, Record], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Columns on work and roofline of one row.

    Args:
        modes: the record of each mode that was measured.
        environment: fingerprint and, where it was measured, roof of the machine.
    """
    measured = {mode: record for mode, record in modes.items() if record["status"] == "ok"}
    first = next((measured[mode] for mode in MODES if mode in measured), {})
    columns: dict[str, Any] = {
        "macs_dispatched": measured.get("forward", {}).get("macs_dispatched"),
        "macs_backward": measured.get("training", {}).get("macs_backward"),
        "elementwise": first.get("elementwise"),
        "elementwise_backward": measured.get("training", {}).get("elementwise_backward"),
        "unruled": "; ".join(first.get("unruled", [])),
    }
    for mode in MODES:
        columns.update(
            {f"{key}_{mode}": value for key, value in _mode_columns(measured.get(mode), environment).items()}
        )
    return columns


def _mode_columns(record: Record | None, environment: Mapping[str, Any]) -> dict[str, Any]:
    columns: dict[str, Any] = dict.fromkeys(_FIGURES)
    if record is None or any(key not in record for key in _WORK):
        return columns
    operations, compulsory = operations_of(record), record["bytes_compulsory"]
    latency = median(record["samples_ms"])
    columns["bytes_compulsory"], columns["bytes_moved"] = compulsory, record.get("bytes_moved")
    columns["operations"] = operations
    columns["gflops"] = operations / latency / 1e6
    if compulsory:
        columns["intensity"] = operations / compulsory
    roof = roof_of(environment, record["dtype"])
    if roof is not None and operations + compulsory > 0:
        bound = bound_of(operations, compulsory, roof)
        columns["bound"], columns["bound_ms"] = bound.kind, bound.ms
        columns["reach"] = bound.ms / latency
    return columns
