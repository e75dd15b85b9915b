"""What is to be measured: `plan(experiment) -> trials`, pure; what is wrong with it is said before anything runs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import operators
from attnbench.config import WHOLE, Accuracy, Amp, Experiment, Network
from attnbench.data.features import expect_fitting
from attnbench.errors import UsageError
from attnbench.models.backbone import build_backbone
from attnbench.models.build import build_operator
from attnbench.models.weights import read_weights
from attnbench.ranges import check_ranges
from attnbench.records import Trial

_LOG = logging.getLogger(__name__)


def resolve_device(device: str, *, predicted: bool = False) -> str:
    """`"auto"` resolved to what there is; a prediction needs no device to be there.

    Raises:
        UsageError: if the device is unknown or absent.
    """
    present = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if device == "auto":
        return present[-1]
    if device not in present and not (predicted and device == "cuda"):
        raise UsageError(f"device: expected one of auto, {', '.join(present)} on this machine, got {device!r}")
    return device


def plan(experiment: Experiment) -> list[Trial]:
    """Unfolds an experiment into its trials, in the order in which they run.

    Raises:
        UsageError: if an operator is unknown, cannot be imported, or does not fit the channels.
    """
    check_ranges(experiment)
    try:
        files = [operators.load_file(reference).spec.name for reference in experiment.operator_files]
        named = operators.names() if experiment.operators == ("all",) else experiment.operators
        names = list(dict.fromkeys([*named, *files]))
        for name in [*names, *experiment.settings]:
            operators.get(name)
    except (operators.UnknownOperatorError, operators.BrokenOperatorError) as error:
        raise UsageError(str(error)) from error
    predicted = experiment.cost is not None and experiment.cost.predicted
    _expect_predictable(experiment)
    device = resolve_device(experiment.device, predicted=predicted)
    trials: list[Trial] = []
    if experiment.cost is not None:
        trials += _plan_cost(names, device, experiment)
    if experiment.accuracy is not None:
        trials += _plan_accuracy(names, device, experiment)
    if not trials:
        raise UsageError("experiment: expected cost or accuracy to measure, got neither")
    if device == "cpu" and experiment.accuracy is not None:
        _expect_precision(experiment.accuracy.recipe.amp)
    for trial in trials:
        _fit_channels(trial)
        if trial.network is not None:
            _fit_weights(trial.network)
    return trials


def emulates_bfloat16() -> bool:
    """Whether this processor computes in bfloat16 by other instructions, several times slower than in float32."""
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _expect_precision(amp: Amp) -> None:
    """Says what a processor cannot train in, and what it is slow in."""
    if amp == "float16":
        raise UsageError("amp: expected 'off' or 'bfloat16' on device 'cpu', got 'float16'")
    if amp == "bfloat16" and emulates_bfloat16():
        _LOG.warning(
            "amp bfloat16: this processor has no instructions for it, and computes in it several times slower than in "
            "float32; --amp off trains in float32, which the records tell apart"
        )


def shard(trials: Sequence[Trial], part: int, parts: int) -> list[Trial]:
    """Part 1, 2, ... of a plan in `parts` disjoint parts of equal size, give or take one; each has some of every block.

    Example:
        >>> shard(["a", "b", "c", "d", "e"], 2, 3)
        ['b', 'e']
    """
    return list(trials[part - 1 :: parts])


def blocks(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials that share a worker: all operators of one level, size, type and mode; accuracy trials of one seed."""
    grouped: dict[Any, list[Trial]] = {}
    for trial in trials:
        part = dataclasses.replace(trial, operator="", implementation="reference", settings="{}")
        grouped.setdefault(part, []).append(trial)
    return list(grouped.values())


def _expect_predictable(experiment: Experiment) -> None:
    cost, accuracy = experiment.cost, experiment.accuracy
    if cost is None or not cost.predicted:
        return
    for name, asked in (("accuracy", accuracy is not None), ("the latency of torch.compile", cost.compiled)):
        if asked:
            raise UsageError(f"predicted: expected cost that nothing has to run for, got {name} beside it")


def _settings(experiment: Experiment, name: str) -> str:
    return json.dumps(experiment.settings.get(name, {}), sort_keys=True)


def _plan_cost(names: Sequence[str], device: str, experiment: Experiment) -> Iterator[Trial]:
    cost = experiment.cost
    assert cost is not None
    points = itertools.product(cost.levels, cost.sizes, cost.channels, cost.batches, cost.dtypes, cost.modes)
    for level, (height, width), channels, batch, dtype, mode in points:
        network = dataclasses.replace(cost.network, slot_channels=channels)
        for name in names:
            for implementation in operators.get(name).spec.implementations:
                yield Trial(
                    task="cost",
                    operator=name,
                    implementation=implementation,
                    settings=_settings(experiment, name),
                    device=device,
                    level=level,
                    mode=mode,
                    channels=channels,
                    height=height,
                    width=width,
                    batch=batch,
                    dtype=dtype,
                    channels_last=cost.channels_last or None,
                    compiled=cost.compiled or None,
                    in_channels=cost.in_channels if level == "head" else None,
                    num_classes=cost.num_classes,
                    network=network if level in ("head", "network") else None,
                    predicted=cost.predicted or None,
                )


def _plan_accuracy(names: Sequence[str], device: str, experiment: Experiment) -> Iterator[Trial]:
    accuracy = experiment.accuracy
    assert accuracy is not None
    _expect_cachable(accuracy)
    weights = accuracy.network.backbone_weights
    for seed, name in itertools.product(accuracy.seeds, names):
        yield Trial(
            task="accuracy",
            operator=name,
            implementation="reference",
            settings=_settings(experiment, name),
            device=device,
            network=accuracy.network,
            dataset=accuracy.dataset,
            image_size=accuracy.image_size,
            train_split=accuracy.train_split,
            eval_split=accuracy.eval_split,
            freeze_backbone=accuracy.freeze_backbone,
            cache_features=accuracy.cache_features or None,
            recipe=accuracy.recipe,
            seed=seed,
            threads=max(1, cores() // jobs(accuracy, device)) if device == "cpu" else None,
            weights_hash=_file_hash(weights) if weights else None,
            inference=None if accuracy.inference == WHOLE else accuracy.inference,
            boundary=accuracy.boundary or None,
        )


def _expect_cachable(accuracy: Accuracy) -> None:
    if not accuracy.cache_features:
        return
    if not accuracy.freeze_backbone:
        raise UsageError("cache_features: expected a frozen backbone (freeze_backbone), got one that is trained")
    if accuracy.inference != WHOLE:
        raise UsageError("cache_features: expected images that are read whole and once, got inference of another kind")
    expect_fitting(accuracy.recipe, accuracy.network.output_stride)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs(accuracy: Accuracy, device: str) -> int:
    """Training runs at a time: small networks keep one core each busy far better than one network keeps all."""
    return accuracy.jobs or (cores() if device == "cpu" else 1)


def lanes(experiment: Experiment, trials: Sequence[Trial]) -> int:
    """Training runs or predictions at a time."""
    if trials[0].predicted:
        return cores()
    return jobs(experiment.accuracy, trials[0].device) if experiment.accuracy else 1


@functools.cache
def _file_hash(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except (OSError, ValueError) as error:  # a ValueError where the name holds what no name can
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"backbone weights: expected a file, got {path!r} ({reason})") from error


@functools.cache
def _build_meta(operator: str, channels: int, settings: str) -> None:
    try:
        with torch.device("meta"):
            build_operator(operator, channels, num_classes=2, settings=json.loads(settings))
    except (RuntimeError, TypeError, OverflowError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"{operator}: expected channels to build it with, got {channels} ({reason})") from error


def _fit_channels(trial: Trial) -> None:
    """Raises a `UsageError` now if the slot's channels do not fit the operator, before anything has run."""
    channels = trial.channels or (trial.network.slot_channels if trial.network else None)
    if channels is not None:
        _build_meta(trial.operator, channels, trial.settings)


@functools.cache
def _fit_weights(network: Network) -> None:
    """Raises a `UsageError` now if the file of backbone weights is torn, or of another backbone."""
    if network.backbone_weights is not None:
        with torch.device("meta"):
            backbone = build_backbone(dataclasses.replace(network, backbone_weights=None))
        read_weights(backbone, network.backbone_weights)
