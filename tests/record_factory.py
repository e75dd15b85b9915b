"""Valid records with made-up figures, for tests of what reads records; never used for results."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from attnbench.records import PROTOCOL, Record, validate

ENVIRONMENT = "0123456789abcdef"
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    ENVIRONMENT: {
        "device": "cpu",
        "cpu": {"model": "Example CPU", "available_cores": 2},
        "threads": {"intra_op": 2, "inter_op": 2},
        "torch": "2.9.0",
        "python": "3.11.9",
    }
}
CLASSES = ("sky", "road", "sign")
# name: (title, kind, MACs per position and channel, share of N, latency in ms at N = 4225, mIoU)
OPERATORS: dict[str, tuple[str, str, float, float, float, float]] = {
    "identity": ("Identity", "control", 0.0, 0.0, 0.002, 0.61),
    "conv1x1": ("Conv 1x1", "control", 1.0, 0.0, 9.0, 0.612),
    "conv3x3": ("Conv 3x3", "control", 9.0, 0.0, 70.0, 0.64),
    "ema": ("EMA", "attention", 2.4, 0.0, 40.0, 0.71),
    "non_local": ("Non-local", "attention", 2.0, 1.0, 160.0, 0.72),
    "criss_cross": ("Criss-cross", "attention", 2.5, 0.1, 120.0, 0.705),
    "dual": ("Dual attention", "attention", 3.0, 1.1, 190.0, 0.722),
    "global_context": ("Global context", "context", 0.1, 0.0, 4.0, 0.66),
    "pyramid_pooling": ("Pyramid pooling", "context", 13.0, 0.0, 75.0, 0.69),
}


def header(operator: str, task: str, **fields: Any) -> Record:
    """What every record has; `fields` override."""
    title, kind, *_ = OPERATORS.get(operator, (operator.title(), "attention"))
    record: Record = {
        "protocol": PROTOCOL,
        "status": "ok",
        "task": task,
        "operator": operator,
        "implementation": "reference",
        "device": "cpu",
        "settings": "{}",
        "title": title,
        "kind": kind,
        "environment": ENVIRONMENT,
        "source": "feedfeedfeedfeed",
        "commit": "a" * 40,
        "started": "2026-01-02T03:04:05.000000Z",
        "wall_s": 1.5,
        **fields,
    }
    text = json.dumps(record, sort_keys=True)
    return {**record, "identity": hashlib.sha256(text.encode()).hexdigest()[:24]}


def cost_record(operator: str = "ema", mode: str = "forward", *, size: int = 65, **fields: Any) -> Record:
    """A cost record; with another `status` it keeps the trial's fields and its reason alone."""
    channels, n = 512, size * size
    _, _, dense, square, latency, _ = OPERATORS.get(operator, ("", "attention", 1.0, 0.0, 10.0, 0.5))
    generator = np.random.default_rng(len(operator) + size + len(mode))
    factor = 3.0 if mode == "training" else 1.0
    control = factor * OPERATORS["conv3x3"][4] * n / 4225 * generator.lognormal(0, 0.02, 11)
    growth = n / 4225 * (1 + square * n / 4225) / (1 + square)
    macs = int(dense * n * channels**2 + square * 2 * n * n * channels)
    trial = {
        "level": "operator",
        "mode": mode,
        "channels": channels,
        "height": size,
        "width": size,
        "batch": 1,
        "dtype": "float32",
        "num_classes": 21,
    }
    figures = {
        "params": int(dense * channels**2),
        "macs": macs,
        "macs_closed_form": macs,
        "uncounted": ["aten::softmax"],
        "lower_bound": False,
        "notes": [],
        "peak_bytes": int(factor * (n * channels * 4 * bool(dense) + 4 * square * n * n)),
        "samples_ms": [float(value) for value in factor * latency * growth * generator.lognormal(0, 0.02, 11)],
        "control_samples_ms": [float(value) for value in control],
        "calls_per_sample": 1,
        "prepare_s": 0.5,
    }
    failed = fields.get("status", "ok") != "ok"
    record = header(operator, "cost", **{**trial, **({"reason": "no reason"} if failed else figures), **fields})
    validate(record)
    return record


def accuracy_record(operator: str = "ema", seed: int = 0, **fields: Any) -> Record:
    """An accuracy record; with another `status` it keeps the trial's fields and its reason alone."""
    miou = OPERATORS.get(operator, ("", "attention", 1.0, 0.0, 10.0, 0.5))[5] + 0.01 * (seed - 1)
    trial = {
        "dataset": "context",
        "train_split": "train",
        "eval_split": "val",
        "freeze_backbone": False,
        "network.backbone": "small",
        "recipe.iterations": 300,
        "recipe.batch_size": 16,
        "seed": seed,
        "threads": 1,
    }
    figures = {
        "params": 500_000,
        "miou": miou,
        "macc": miou + 0.08,
        "aacc": miou + 0.2,
        "iou": [miou + 0.1, miou - 0.1, None],
        "classes": list(CLASSES),
        "local_ceiling": 0.655,
        "loss": [1.1, 0.7],
        "train_s": 6.5,
        "eval_s": 0.5,
        "train_images": 64,
        "eval_images": 32,
    }
    failed = fields.get("status", "ok") != "ok"
    record = header(operator, "accuracy", **{**trial, **({"reason": "no reason"} if failed else figures), **fields})
    validate(record)
    return record


def full_run(*, sizes: tuple[int, ...] = (33, 65, 97), seeds: tuple[int, ...] = (0, 1, 2)) -> list[Record]:
    """Every made-up operator in both modes at all sizes, one fused row, one failure, and accuracy of all."""
    records = [
        cost_record(operator, mode, size=size)
        for size in sizes
        for mode in ("forward", "training")
        for operator in OPERATORS
        if (operator, mode, size) != ("dual", "training", sizes[-1])
    ]
    for size in sizes:
        for mode in ("forward", "training"):
            fused = cost_record("non_local", mode, size=size)
            faster = [value / 4 for value in fused["samples_ms"]]
            records.append(
                cost_record(
                    "non_local",
                    mode,
                    size=size,
                    implementation="fused",
                    samples_ms=faster,
                    peak_bytes=9_000_000,
                )
            )
    failure = {"status": "out_of_memory", "reason": "tried to allocate 4.00 GiB"}
    records.append(cost_record("dual", "training", size=sizes[-1], **failure))
    records += [accuracy_record(operator, seed) for operator in OPERATORS for seed in seeds]
    return records


def small_run() -> list[Record]:
    """Four operators at one size, both modes, three seeds."""
    names = ("identity", "conv3x3", "ema", "non_local")
    costs = [cost_record(name, mode) for mode in ("forward", "training") for name in names]
    return [*costs, *(accuracy_record(name, seed) for name in names for seed in (0, 1, 2))]
