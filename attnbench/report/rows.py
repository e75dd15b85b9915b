"""One row: the records of one operator, implementation and hyper-parameters in one setting."""

from __future__ import annotations

import bisect
import functools
import json
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from attnbench.records import Record
from attnbench.report.seeds import add_intervals
from attnbench.statistics import Summary, median, summarise_all

ROW = ("operator", "implementation", "settings")
"""Fields that tell the rows of one table apart."""

CONTROL = "conv3x3"
MODES = ("forward", "training")
MIB = 2**20
SCORES = ("miou", "macc", "aacc")
_MODE_FIGURES = (
    *("peak_mib", "latency_ms", "latency_low_ms", "latency_high_ms", "spread", "samples", "calls_per_sample"),
    *("images_per_s", "largest_mib", "largest_by", "predicted_peak_mib", "peak_deviation"),
    *("control_ms", "ratio", "ratio_low", "ratio_high"),
)


Timings = Mapping[int, tuple[Summary, Summary]]
"""Latency, and its ratio to the control, by `id` of the record."""


def timings(records: Iterable[Record]) -> Timings:
    """Summaries of all records that hold samples; at once, because a hundred thousand one by one take many seconds."""
    timed = [record for record in records if "samples_ms" in record]
    samples = [record["samples_ms"] for record in timed]
    controls = [record["control_samples_ms"] for record in timed]
    ratios = [list(map(operator.truediv, *pair)) for pair in zip(samples, controls, strict=True)]
    summaries = zip(summarise_all(samples), summarise_all(ratios), strict=True)
    return dict(zip(map(id, timed), summaries, strict=True))


def cost_row(trials: Sequence[Record], timed: Timings) -> dict[str, Any]:
    """Cost of one operator: what both modes share, then the columns of each mode.

    Args:
        trials: at most one record of each mode.
        timed: summaries of their latencies.

    """
    row = _header(trials)
    row["growth"] = trials[0].get("growth")
    row["commit"] = ", ".join(dict.fromkeys(str(trial["commit"]) for trial in trials))
    row["source"] = trials[0]["source"]
    row["started"] = min(str(trial["started"]) for trial in trials)
    modes = {str(trial["mode"]): trial for trial in trials}
    measured = [modes[mode] for mode in MODES if mode in modes and modes[mode]["status"] == "ok"]
    first: Record = measured[0] if measured else {}
    row["params"] = first.get("params")
    row["macs"] = first.get("macs")
    row["macs_closed_form"] = first.get("macs_closed_form")
    row["flops"] = 2 * first["macs"] if measured else None
    row["macs_lower_bound"] = first.get("lower_bound")
    row["uncounted"] = "; ".join(first.get("uncounted", []))
    for mode in MODES:
        row.update(zip(_columns_of(mode), _mode_columns(modes.get(mode), timed).values(), strict=True))
    row["saved_mib_training"] = _mib(modes.get("training", {}), "saved_bytes")
    return row


def accuracy_row(trials: Sequence[Record]) -> dict[str, Any]:
    """Accuracy of one operator over its seeds: mean and sample standard deviation.

    Args:
        trials: at most one record of each seed.

    """
    row = _header(trials)
    scored = [trial for trial in trials if trial["status"] == "ok"]
    failed = [trial for trial in trials if trial["status"] != "ok"]
    row["accuracy_of"] = trials[0]["implementation"]
    row["status_accuracy"] = "ok" if scored else failed[0]["status"]
    row["reason_accuracy"] = "; ".join(dict.fromkeys(str(trial["reason"]) for trial in failed))
    row["seeds"] = len(scored)
    row["failed_seeds"] = len(failed)
    for name in SCORES:
        row[name], row[f"{name}_std"] = _mean_std([trial[name] for trial in scored])
    outlined = [trial["boundary_f"] for trial in scored if "boundary_f" in trial]
    row["boundary_f"], row["boundary_f_std"] = _mean_std(outlined)
    if outlined:
        row["boundary_seeds"] = len(outlined)
    row["seed_miou"] = {trial["seed"]: trial["miou"] for trial in scored}
    row["seed_control"] = {trial["seed"]: trial["control_miou"] for trial in scored if "control_miou" in trial}
    if any("block" in trial for trial in scored):
        row["blocks"] = json.dumps(_blocks(scored))
    row["iou"] = json.dumps(_class_means(scored)) if scored else None
    row["local_ceiling"] = max((trial["local_ceiling"] for trial in scored if "local_ceiling" in trial), default=None)
    row["params_network"] = scored[0]["params"] if scored else None
    for name in ("train_s", "eval_s", "train_images_per_s", "data_wait_share"):
        row[name] = _mean_std([trial[name] for trial in scored if name in trial])[0]
    ends = [trial["loss"][-math.ceil(len(trial["loss"]) / 10) :] for trial in scored if trial["loss"]]
    row["train_loss"] = _mean_std([math.fsum(end) / len(end) for end in ends])[0]
    row["train_images"] = scored[0].get("train_images") if scored else None
    row["eval_images"] = scored[0].get("eval_images") if scored else None
    row["source_accuracy"] = trials[0]["source"]
    row["commit_accuracy"] = ", ".join(dict.fromkeys(str(trial["commit"]) for trial in trials))
    row["started_accuracy"] = min(str(trial["started"]) for trial in trials)
    row["identities_accuracy"] = "; ".join(str(trial["identity"]) for trial in trials)
    return row


def add_gains(rows: Sequence[dict[str, Any]]) -> None:
    """Adds to each accuracy row its gain in mIoU over the 3x3 convolution, and what the seeds say of both."""
    control: dict[int, float] = next((row["seed_miou"] for row in rows if row["operator"] == CONTROL), {})
    for row in rows:
        own: dict[int, float] = row["seed_miou"] if row["operator"] != CONTROL else {}
        within: dict[int, float] = row.pop("seed_control")
        beside = control | within
        row["seed_gain"] = {seed: own[seed] - beside[seed] for seed in own if seed in beside}
        row["gain"], row["gain_std"] = _mean_std(list(row["seed_gain"].values()))
        row["gain_seeds"] = len(row["seed_gain"])
        if "blocks" in row:
            row["gain_across"] = json.dumps([seed for seed in row["seed_gain"] if seed not in within])
    add_intervals(rows)


def add_ranks(rows: Sequence[dict[str, Any]]) -> None:
    """Adds the range of ranks by latency ratio to each cost row: rows whose intervals overlap are tied.

    The best possible rank counts the rows that are faster beyond their intervals, the worst all that may be. Rows
    without an interval have no rank.
    """
    for mode in MODES:
        low, high = f"ratio_low_{mode}", f"ratio_high_{mode}"
        lows, highs = (sorted(row[key] for row in rows if row.get(low) is not None) for key in (low, high))
        for row in rows:
            best = worst = None
            if row.get(low) is not None:
                best = 1 + bisect.bisect_left(highs, row[low])
                worst = bisect.bisect_right(lows, row[high])
            row[f"rank_{mode}"], row[f"rank_worst_{mode}"] = best, worst


def _header(trials: Sequence[Record]) -> dict[str, Any]:
    return {key: trials[0][key] for key in (*ROW, "title", "kind")}


@functools.cache
def _columns_of(mode: str) -> list[str]:
    return [f"{name}_{mode}" for name in _mode_columns(None, {})]


def _mode_columns(trial: Record | None, timed: Timings) -> dict[str, Any]:
    columns: dict[str, Any] = {"status": trial["status"] if trial else "not measured"}
    columns["reason"] = trial.get("reason", "") if trial else ""
    columns |= dict.fromkeys(_MODE_FIGURES)
    if trial is not None and trial["status"] == "ok":
        columns |= _memory_columns(trial)
    if trial is not None and "samples_ms" in trial:
        latency, ratio = timed[id(trial)]
        columns["latency_ms"], columns["latency_low_ms"] = latency.median, latency.low
        columns["latency_high_ms"] = latency.high
        columns["spread"] = latency.iqr / latency.median
        columns["samples"] = latency.count
        columns["calls_per_sample"] = trial["calls_per_sample"]
        columns["images_per_s"] = 1e3 * trial["batch"] / latency.median
        columns["control_ms"] = median(trial["control_samples_ms"])
        columns["ratio"], columns["ratio_low"], columns["ratio_high"] = ratio.median, ratio.low, ratio.high
    columns["notes"] = "; ".join(trial.get("notes", [])) if trial else ""
    columns["identity"] = trial["identity"] if trial else ""
    return columns


def _memory_columns(trial: Record) -> dict[str, Any]:
    predicted = trial.get("predicted_peak_bytes")
    return {
        "peak_mib": _mib(trial, "peak_bytes"),
        "largest_mib": _mib(trial, "largest_bytes"),
        "largest_by": trial.get("largest_by"),
        "predicted_peak_mib": _mib(trial, "predicted_peak_bytes"),
        "peak_deviation": trial["peak_bytes"] / predicted - 1 if predicted else None,
    }


def _mib(trial: Record, name: str) -> float | None:
    return trial[name] / MIB if name in trial else None


def _mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and the sample standard deviation where there are two values."""
    if not values:
        return None, None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _blocks(scored: Sequence[Record]) -> dict[str, list[int]]:
    """Seeds by what they were trained with, where they are pooled over that."""
    seeds: dict[str, list[int]] = {}
    for trial in scored:
        seeds.setdefault(trial.get("block", ""), []).append(trial["seed"])
    return seeds


def _class_means(scored: Sequence[Record]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for index, name in enumerate(scored[0]["classes"]):
        values = [trial["iou"][index] for trial in scored if trial["iou"][index] is not None]
        means[name] = math.fsum(values) / len(values) if values else None
    return means
