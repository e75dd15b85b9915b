"""Seeds that were trained in several places as seeds of one row: pooled over machine or precision, paired within."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from attnbench.errors import UsageError
from attnbench.records import Record, trial_key
from attnbench.report.facts import BETWEEN, Environments, flatten, machine
from attnbench.report.rows import CONTROL, ROW
from attnbench.report.wording import distinct

POOLABLE = ("environment", "threads", "processes", "recipe.amp", "recipe.channels_last", "recipe.compile")
"""How a training was computed, not what: fields that change the score of a seed by what rounding does to it."""

_SECONDS = ("train_s", "eval_s", "train_images_per_s", "data_wait_share")

Block = tuple[Any, ...]


class Pooled(NamedTuple):
    """Records whose trainings differ in nothing that was pooled over.

    Args:
        records: one of each row and seed, and those of cost as they were.
        environments: fingerprint by environment hash, those that pooled records have in common among them.
        notes: sentences on the trainings that are left out.
    """

    records: list[Record]
    environments: dict[str, Mapping[str, Any]]
    notes: list[str]


def pool(records: Sequence[Record], environments: Environments, fields: Sequence[str]) -> Pooled:
    """Records and environments in which trainings that differ in `fields` alone have one setting.

    Trainings with equal fields are a block. Of an operator's code the latest counts. Of an operator and a seed that
    several blocks have, the one counts whose block trained most operators with that seed: two runs of one seed are no
    two samples. Each training brings the score of the 3x3 convolution of its seed and block along, so that what blocks
    differ in is in no gain; where the block has none, the gain is over the one that counts, and the table says so.
    Seconds are left out, since they belong to a machine, and records of cost stay as they are.

    Args:
        records: records of several environments or precisions.
        environments: fingerprint by environment hash.
        fields: those of `POOLABLE` over which to pool; none leaves everything as it is.

    Raises:
        UsageError: if a field is not one of `POOLABLE`, or is the same in all trainings.
    """
    for field in fields:
        values = {str(record.get(field)) for record in records if record["task"] == "accuracy"}
        if field not in POOLABLE or len(values) < 2:
            held = f", which is {values.pop()} in all trainings" if len(values) == 1 and field in POOLABLE else ""
            raise UsageError(f"pool: expected fields of {', '.join(POOLABLE)} that differ, got {field!r}{held}")
    groups: dict[tuple[str, ...], list[Record]] = {}
    pooled = Pooled(
        [record for record in records if not fields or record["task"] != "accuracy"], dict(environments), []
    )
    for record in records if fields else ():
        if record["task"] == "accuracy":
            groups.setdefault(_setting(record, fields), []).append(record)
    current = [_of_latest_code(group) for group in groups.values()]
    counted = [found for group in current for found in _pooled(group, pooled.environments, fields)]
    pooled.records.extend(counted)
    for left_out, why in (
        (sum(map(len, groups.values())) - sum(map(len, current)), "their operator's code has changed since"),
        (sum(map(len, current)) - len(counted), "pooled, another of their seed counts"),
    ):
        if left_out:
            pooled.notes.append(f"{left_out} training(s) are not shown: {why}.")
    return pooled


def _setting(record: Record, fields: Sequence[str]) -> tuple[str, ...]:
    # whether boundaries were scored, too, is no matter of what was trained
    kept = {name: value for name, value in record.items() if name not in (*fields, *ROW, "boundary")}
    apart = [str(record.get(name)) for name in ("environment", "threads") if name not in fields]
    return trial_key(kept, seeds=False), *apart


def _pooled(group: Sequence[Record], environments: dict[str, Mapping[str, Any]], fields: Sequence[str]) -> list[Record]:
    """One record for each row and seed of one setting; adds the environment that they have in common."""
    names = [name for name in fields if len({str(record.get(name)) for record in group}) > 1]
    if not names:
        return list(group)
    scored = [record for record in group if record["status"] == "ok"]
    sizes = Counter((record["seed"], _block(record, names)) for record in scored)
    controls = {
        (record["seed"], _block(record, names)): record["miou"] for record in scored if record["operator"] == CONTROL
    }
    common = {name: BETWEEN.join(map(str, distinct(record.get(name) for record in group))) for name in names}
    if "environment" in names:
        keys = distinct(record["environment"] for record in group)
        environments[common["environment"]] = _merged([environments.get(key, {}) for key in keys])

    def rank(record: Record) -> tuple[bool, int, str]:
        return record["status"] == "ok", sizes[record["seed"], _block(record, names)], _age(record)

    chosen = {(_row(record), record["seed"]): record for record in sorted(group, key=rank)}
    found = []
    for record in chosen.values():
        pooled = {name: value for name, value in record.items() if name not in _SECONDS} | common
        pooled["block"] = ", ".join(_told(name, record, environments) for name in names)
        place = record["seed"], _block(record, names)
        found.append(pooled | ({"control_miou": controls[place]} if place in controls else {}))
    return found


def _of_latest_code(group: Sequence[Record]) -> list[Record]:
    latest = {_row(record): record["source"] for record in sorted(group, key=_age)}
    return [record for record in group if record["source"] == latest[_row(record)]]


def _told(name: str, record: Record, environments: Environments) -> str:
    if name != "environment":
        return f"{name} {record.get(name)}"
    key = record["environment"]
    found = machine(environments.get(key, {}), record.get("threads")) or "unknown machine"
    return f"{found} (environment {key})"


def _merged(fingerprints: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    flat = [flatten(fingerprint) for fingerprint in fingerprints]
    keys = dict.fromkeys(key for values in flat for key in values)
    return {key: BETWEEN.join(distinct(values.get(key) for values in flat)) for key in keys}


def _row(record: Record) -> tuple[str, ...]:
    return tuple(record[name] for name in ROW)


def _block(record: Record, names: Sequence[str]) -> Block:
    return tuple(str(record.get(name)) for name in names)


def _age(record: Record) -> str:
    return str(record["started"])
