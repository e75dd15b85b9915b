"""Folders of very many records with made-up figures: `python tests/many_records.py FOLDER [COUNT]`."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from record_factory import ENVIRONMENT, ENVIRONMENTS, accuracy_record, cost_record

from attnbench.records import Record

OPERATORS = 50
SAMPLES = 20
SEEDS = 20
LOSSES = 300


def many_records(count: int) -> Iterator[Record]:
    """`count` distinct records: nine tenths a sweep of cost over settings, one tenth training runs on several machines.

    There are 20 seeds; every setting has 50 operators, a cost setting both modes. A record holds 20 samples or 300
    losses, as real ones do.
    """
    generator = np.random.default_rng(0)
    draws = generator.lognormal(0, 0.02, (997, SAMPLES)).tolist()
    losses = [round(value, 6) for value in np.linspace(2, 0.5, LOSSES).tolist()]
    costs = count * 9 // 10
    yield from itertools.islice(_costs(draws, 1 + costs // (2 * OPERATORS)), costs)
    yield from itertools.islice(_accuracies(losses, 1 + (count - costs) // (SEEDS * OPERATORS)), count - costs)


def _costs(draws: list[list[float]], settings: int) -> Iterator[Record]:
    templates = {mode: cost_record("ema", mode) for mode in ("forward", "training")}
    for setting, mode, operator in itertools.product(range(settings), templates, range(OPERATORS)):
        number = 2 * (OPERATORS * setting + operator) + (mode == "training")
        samples = draws[number % len(draws)]
        yield _numbered(
            templates[mode],
            f"cost {number}",
            number,
            operator=f"operator_{operator:02}" if operator else "conv3x3",
            title=f"Operator {operator}" if operator else "Conv 3x3",
            kind="attention" if operator else "control",
            height=8 + setting % 30,
            width=8 + setting % 30,
            channels=64 * (1 + setting // 30 % 10),
            batch=1 + setting // 300,
            samples_ms=samples,
            control_samples_ms=draws[(number + 1) % len(draws)],
        )


def _accuracies(losses: list[float], settings: int) -> Iterator[Record]:
    template = accuracy_record("ema", 0)
    for setting, seed, operator in itertools.product(range(settings), range(SEEDS), range(OPERATORS)):
        number = (setting * SEEDS + seed) * OPERATORS + operator
        yield _numbered(
            template,
            f"accuracy {number}",
            number,
            operator=f"operator_{operator:02}" if operator else "conv3x3",
            title=f"Operator {operator}" if operator else "Conv 3x3",
            kind="attention" if operator else "control",
            seed=seed,
            miou=0.5 + operator / 200 + seed / 1000,
            loss=losses,
            environment=f"{setting:016x}" if setting else ENVIRONMENT,
            **{"network.multi_grid": [1, 1, 1], "recipe.scale_range": [1.0, 1.0], "recipe.flip": True},
        )


def _numbered(template: Record, name: str, number: int, **fields: Any) -> Record:
    day, second = divmod(number, 86_400)
    clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    identity = hashlib.sha256(name.encode()).hexdigest()[:24]
    return {**template, **fields, "identity": identity, "started": f"2026-01-{day + 1:02}T{clock}.000000Z"}


def write_many(folder: Path, count: int, files: int = 4) -> None:
    """Writes them as runs leave them, dealt out to `files` files."""
    (folder / "records").mkdir(parents=True)
    (folder / "environments").mkdir()
    (folder / "environments" / f"{ENVIRONMENT}.json").write_text(json.dumps(ENVIRONMENTS[ENVIRONMENT]))
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context((folder / "records" / f"{name}.jsonl").open("w")) for name in range(files)]
        for file, record in zip(itertools.cycle(opened), many_records(count), strict=False):
            file.write(json.dumps(record, sort_keys=True) + "\n")


if __name__ == "__main__":
    write_many(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100_000)
