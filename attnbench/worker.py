"""What runs inside a worker process: one block of trials, told to the parent message by message.

A block of cost trials is prepared trial by trial (build, check, count, peak memory) and then sampled round robin; a
block of accuracy trials runs one after the other. Before each step the worker says which trial is in flight, so that
the parent knows whose row it is if the process dies.
"""

from __future__ import annotations

import functools
import gc
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch

import operators
from attnbench.accuracy import train_and_score
from attnbench.allocator import keep_freed_memory
from attnbench.config import Cost
from attnbench.environment import gpu_state
from attnbench.errors import UsageError
from attnbench.faults import failure, lost_device
from attnbench.lifetime import end_with_parent
from attnbench.measuring.cost import MacCount, count_macs, count_params
from attnbench.measuring.flop_counter import count_work
from attnbench.measuring.latency import round_robin
from attnbench.measuring.memory import profile_memory
from attnbench.prediction import expect_declared, memory_figures, predict, predicted_memory
from attnbench.records import Trial
from attnbench.training.events import Events
from attnbench.training.telling import telling
from attnbench.workload import Workload, build_workload
from operators import checks

CONTROL = "conv3x3"


@dataclass(frozen=True)
class Message:
    """What a worker tells its parent.

    Args:
        kind: `"begin"` (this trial is in flight), `"progress"`, `"numbers"` (first figures, for display), `"done"`,
            `"failed"`, `"usage"` (something the user must mend before anything else can run).
        trial: index of the trial in its block.
        data: figures of the record (`numbers`, `done`), `status`, `reason` and `spent` (`failed`; whether the
            process can do nothing more), `reason` (`usage`), what `Watch.told` says, or `done` and `total` of
            the images whose features are computed (`progress`).
    """

    kind: Literal["begin", "progress", "numbers", "done", "failed", "usage"]
    trial: int
    data: dict[str, Any]


Send = Callable[[Message], None]


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker needs beside its trials.

    Args:
        operator_files: files of third parties to register.
        conforming: operators that passed the checks earlier in this run.
        data_root: folder of the dataset.
        threads: threads of torch; none for torch's default.
        loaders: processes that load data for a training run.
        tensorboard: folder of TensorBoard's events; none writes none.
    """

    operator_files: tuple[str, ...] = ()
    conforming: frozenset[str] = frozenset()
    data_root: str | None = None
    threads: int | None = None
    loaders: int = 0
    tensorboard: str | None = None


def work(connection: Connection, trials: Sequence[Trial], cost: Cost | None, options: WorkerOptions) -> None:
    """Runs one block and closes the connection; the entry point of a worker process."""
    # Ctrl-C reaches the whole group of processes; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Measuring collects garbage before each trial; the hundred thousands of objects that imports made are none.
    gc.freeze()
    keep_freed_memory()
    end_with_parent()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    for reference in options.operator_files:
        operators.load_file(reference)
    send: Send = connection.send
    if trials[0].predicted:
        _predict(trials, send)
    elif trials[0].task == "cost":
        assert cost is not None
        _run_cost(trials, cost, options, send)
    else:
        _run_accuracy(trials, options, send)
    connection.close()


def _predict(trials: Sequence[Trial], send: Send) -> None:
    for index, trial in enumerate(trials):
        send(Message("begin", index, {}))
        try:
            figures = predict(trial)
        except Exception as error:  # noqa: BLE001 - whatever an operator raises becomes its row
            send(_failed(index, error))
        else:
            send(Message("numbers", index, figures))
            send(Message("done", index, figures))


def _run_cost(trials: Sequence[Trial], cost: Cost, options: WorkerOptions, send: Send) -> None:
    workloads: dict[int, Workload] = {}
    figures: dict[int, dict[str, Any]] = {}
    for index, trial in enumerate(trials):
        send(Message("begin", index, {}))
        failed = None
        try:
            if trial.operator not in options.conforming:
                _check(trial.operator)
            workloads[index], figures[index] = _prepare(trial)
        except Exception as error:  # noqa: BLE001 - whatever an operator raises becomes its row
            failed = _failed(index, error)
        if failed is None:
            send(Message("numbers", index, figures[index]))
            continue
        # Outside the handler: an exception holds the frames that it came from, and so their tensors.
        _release(trial)
        send(failed)
    if not workloads:
        return
    control = _control(trials, workloads)
    while workloads:
        flying = [-1]
        keys = {index: CONTROL if workload is control else str(index) for index, workload in workloads.items()}
        owners = {name: index for index, name in keys.items()}

        def announce(name: str, flying: list[int] = flying, owners: dict[str, int] = owners) -> None:
            flying[0] = owners.get(name, -1)
            if flying[0] >= 0:
                send(Message("begin", flying[0], {}))

        steps = {keys[index]: workload.timed_step for index, workload in workloads.items()}
        try:
            samples = round_robin(
                {**steps, CONTROL: control.timed_step},
                control=CONTROL,
                device=torch.device(trials[0].device),
                seconds_per_step=cost.seconds_per_trial,
                target_width=cost.target_width,
                min_samples=cost.min_samples,
                on_sample=announce,
            )
        except Exception as error:
            if flying[0] < 0:
                raise
            failed = _failed(flying[0], error)
        else:
            failed = None
        if failed is not None:
            del workloads[flying[0]], steps
            _release(trials[0])
            send(failed)
            continue
        state = gpu_state(trials[0].device)
        for index in workloads:
            taken = samples[keys[index]]
            timing = {
                **state,
                "samples_ms": list(taken.ms),
                "control_samples_ms": list(taken.control_ms),
                "calls_per_sample": taken.calls_per_sample,
            }
            send(Message("done", index, {**figures[index], **timing}))
        return


@functools.cache
def _check(operator: str) -> None:
    """Raises a `ConformanceError` if the operator fails a check; what has passed is not checked again."""
    for name, why in checks.run_checks(operators.get(operator), only=checks.QUICK).items():
        if why is not None:
            raise checks.ConformanceError(f"{name}: {why}")


def _prepare(trial: Trial) -> tuple[Workload, dict[str, Any]]:
    started = time.perf_counter()
    workload = build_workload(trial)
    counted = count_macs(workload.module, workload.inputs)
    expect_declared(workload, counted.macs)
    work = _count_work(workload, counted)
    memory = profile_memory(workload.forward, workload.backward, torch.device(trial.device), release=workload.release)
    figures: dict[str, Any] = {
        "params": count_params(workload.module),
        "macs": counted.macs,
        **work,
        "uncounted": list(counted.uncounted),
        "lower_bound": counted.lower_bound,
        "notes": workload.notes,
        **memory_figures(memory),
    }
    if trial.device == "cuda":
        figures["predicted_peak_bytes"] = predicted_memory(trial).peak_bytes
    if workload.compiled is not None:
        # compiling belongs to the preparation, not to the budget of the samples
        workload.timed_step()
        workload.release()
    if workload.macs_closed_form is not None:
        figures["macs_closed_form"] = workload.macs_closed_form
    figures["prepare_s"] = time.perf_counter() - started
    return workload, figures


def _count_work(workload: Workload, counted: MacCount) -> dict[str, Any]:
    """Fields on the work of one step, and a note for the record where the counters disagree or cannot see."""
    work = count_work(workload.step, workload.module, workload.inputs)
    if work.hidden:
        workload.notes.append(f"MACs at the dispatcher are a lower bound: {', '.join(work.hidden)} may hide products")
    if workload.mode == "forward" and work.macs != counted.macs:
        workload.notes.append(f"the trace counts {counted.macs} MACs, the dispatcher {work.macs}")
    return work.fields(workload.mode)


def _control(trials: Sequence[Trial], workloads: dict[int, Workload]) -> Workload:
    """The workload that every round contains: the block's own 3x3 convolution, or one built for it."""
    for index, workload in workloads.items():
        if trials[index].operator == CONTROL:
            return workload
    first = trials[0]
    level = "operator" if first.level == "core" else first.level
    fields = {**{name: getattr(first, name) for name in first.__dataclass_fields__}}
    fields.update(operator=CONTROL, implementation="reference", settings="{}", level=level)
    return build_workload(Trial(**fields))


def _failed(index: int, error: Exception) -> Message:
    status, reason = failure(error)
    return Message(
        "failed", index, {"status": status, "reason": reason, "spent": status == "error" and lost_device(error)}
    )


def _release(trial: Trial) -> None:
    """Gives back what a failed trial held, so that the next one starts clean."""
    gc.collect()
    if trial.device == "cuda":
        torch.cuda.empty_cache()


def _run_accuracy(trials: Sequence[Trial], options: WorkerOptions, send: Send) -> None:
    for index, trial in enumerate(trials):
        send(Message("begin", index, {}))
        try:
            figures = _train_and_score(index, trial, options, send)
        except UsageError as error:
            send(Message("usage", index, {"reason": str(error)}))
            return
        except Exception as error:  # noqa: BLE001 - whatever an operator raises becomes its row
            told = _failed(index, error)
        else:
            told = Message("done", index, figures)
        if told.kind == "failed":
            _release(trial)
        send(told)


def _train_and_score(index: int, trial: Trial, options: WorkerOptions, send: Send) -> dict[str, Any]:
    events = Events(options.tensorboard, trial.folder_name) if options.tensorboard else None
    with telling(lambda told: send(Message("progress", index, told)), events) as told:
        return train_and_score(trial, told, data_root=options.data_root, loaders=options.loaders)
