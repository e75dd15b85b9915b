"""Cost figures of a trial that is never run: parameters, MACs and memory, from tensors that hold nothing."""

from __future__ import annotations

import time
from typing import Any

from attnbench.measuring.cost import count_params
from attnbench.measuring.memory import BLOCK, MemoryProfile
from attnbench.measuring.prediction import predict_macs, predict_memory
from attnbench.records import Trial
from attnbench.workload import Workload, pretended_workload
from operators.checks import ConformanceError


def memory_figures(profile: MemoryProfile) -> dict[str, Any]:
    """The fields of a record that a profile of memory fills; what there is none of is left out."""
    figures = {
        "peak_bytes": profile.peak_bytes,
        "saved_bytes": profile.saved_bytes,
        "largest_bytes": profile.largest_bytes,
        "largest_by": profile.largest_by,
    }
    return {name: value for name, value in figures.items() if value is not None}


def predicted_memory(trial: Trial) -> MemoryProfile:
    """Memory of a trial, operation by operation as torch dispatches them on a CPU.

    On a CPU it is what is measured. For CUDA each tensor is rounded up to the allocator's blocks, and that is all
    that is known of the GPU: neither its kernels nor their workspaces.

    Raises:
        Unsupported: if the level does not exist for this operator.
        UsageError: if channels or settings do not fit the operator.
    """
    with pretended_workload(trial) as workload:
        return _memory(workload, trial)


def predict(trial: Trial) -> dict[str, Any]:
    """Figures of the record of a predicted trial.

    Raises:
        ConformanceError: if the MACs are not those that the operator declares.
        Unsupported: if the level does not exist for this operator.
        UsageError: if channels or settings do not fit the operator.
    """
    started = time.perf_counter()
    with pretended_workload(trial) as workload:
        macs = predict_macs(workload.module, workload.inputs)
        expect_declared(workload, macs)
        figures = {
            "params": count_params(workload.module),
            "macs": macs,
            "notes": workload.notes,
            **memory_figures(_memory(workload, trial)),
        }
    if workload.macs_closed_form is not None:
        figures["macs_closed_form"] = workload.macs_closed_form
    return {**figures, "prepare_s": time.perf_counter() - started}


def expect_declared(workload: Workload, macs: int) -> None:
    """Holds counted MACs against the operator's own formula, where the workload has it.

    Raises:
        ConformanceError: if they differ.
    """
    if workload.macs_closed_form is not None and macs != workload.macs_closed_form:
        raise ConformanceError(f"expected {workload.macs_closed_form} MACs as declared, got {macs} counted")


def _memory(workload: Workload, trial: Trial) -> MemoryProfile:
    block = BLOCK if trial.device == "cuda" else 1
    return predict_memory(workload.forward, workload.backward, block=block, release=workload.release)
