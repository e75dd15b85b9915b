"""Records as data frames: a frame for each setting, a row for each operator, implementation and settings.

A setting is everything that must be equal for two rows to be comparable: protocol, environment, device, and
what was measured or trained. Two records of one trial in one setting differ in the source of the operator
alone; the later counts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from attnbench.records import Record
from attnbench.report.roofline import work_columns
from attnbench.report.rows import ROW, Timings, accuracy_row, add_gains, add_ranks, cost_row, timings
from attnbench.report.wording import accuracy_title, details

Row = dict[str, Any]
Environments = Mapping[str, Mapping[str, Any]]

_SHARED = ("protocol", "environment", "device")
_COST = (
    "level",
    "channels",
    "height",
    "width",
    "batch",
    "dtype",
    "channels_last",
    "compiled",
    "predicted",
    "in_channels",
    "num_classes",
)
_ACCURACY = (
    "dataset",
    "image_size",
    "train_split",
    "eval_split",
    "freeze_backbone",
    "cache_features",
    "weights_hash",
    "threads",
    "processes",
)
_LEVELS = ("operator", "core", "head", "network")
_PATH = "network.backbone_weights"


@dataclass(frozen=True, eq=False)
class Frame:
    """Comparable rows.

    Args:
        cost: fields of the cost setting; empty where the rows hold accuracy alone.
        accuracy: fields of the accuracy setting; empty where none was measured.
        environment: fingerprint of the machine and software; empty where it is not known.
        table: one row for each operator, implementation and hyper-parameters; controls first, then by mIoU.
        apart: what tells the accuracy setting from others of its title; empty where it has the title alone.

    """

    cost: Mapping[str, Any]
    accuracy: Mapping[str, Any]
    environment: Mapping[str, Any]
    table: Sequence[Row]
    apart: str = ""

    @property
    def accuracy_title(self) -> str:
        """Title of the accuracy setting, its own among all that were arranged together."""
        return ", ".join(filter(None, (accuracy_title(self.accuracy), self.apart)))

    @functools.cached_property
    def rows(self) -> pd.DataFrame:
        """The rows as a data frame."""
        return pd.DataFrame(list(self.table)).infer_objects()

    @property
    def setting(self) -> dict[str, Any]:
        """Fields of both settings."""
        return {**self.cost, **self.accuracy}


@dataclass(frozen=True, eq=False)
class Arranged:
    """All that records come to.

    Args:
        compared: a frame for each cost setting, with each accuracy setting of the same machine.
        scored: a frame for each accuracy setting.
        replaced: number of records that a later record of the same trial in the same setting replaces.

    """

    compared: tuple[Frame, ...]
    scored: tuple[Frame, ...]
    replaced: int

    @property
    def all(self) -> tuple[Frame, ...]:
        """The comparisons, and behind them the accuracy that was joined to none of them."""
        joined = {id(frame.accuracy) for frame in self.compared}
        return *self.compared, *(frame for frame in self.scored if id(frame.accuracy) not in joined)


def arrange(records: Sequence[Record], environments: Environments) -> Arranged:
    """Sorts records into comparable rows.

    An implementation other than the reference computes the same function and has the reference's accuracy,
    unless it was trained itself; the column `accuracy_of` says which. An operator that was trained and not
    measured is a row too. Predicted cost stands alone.
    """
    scored: list[Frame] = []
    compared: list[Frame] = []
    shown, timed = 0, timings(records)
    for setting, rows in _settings(records, "accuracy"):
        shown += sum(map(len, rows))
        table = [accuracy_row(trials) for trials in rows]
        add_gains(table)
        scored.append(Frame({}, setting, environments.get(setting["environment"], {}), _ordered(table)))
    scored = _told_apart(scored)
    for setting, rows in _settings(records, "cost"):
        shown += sum(map(len, rows))
        environment = environments.get(setting["environment"], {})
        costs = [_cost_row(trials, environment, timed) for trials in rows]
        add_ranks(costs)
        partners = [frame for frame in scored if all(frame.accuracy[key] == setting[key] for key in _SHARED)]
        partners = [] if setting.get("predicted") else partners
        compared += [
            dataclasses.replace(partner, cost=setting, table=_join(costs, partner.table)) for partner in partners
        ]
        if not partners:
            compared.append(Frame(setting, {}, environment, _ordered(costs)))
    return Arranged(tuple(sorted(compared, key=_place)), tuple(sorted(scored, key=_place)), len(records) - shown)


def comparison_frames(records: Sequence[Record], environments: Environments) -> list[Frame]:
    """A frame for each cost setting, with each accuracy setting of the same protocol, environment and device."""
    return list(arrange(records, environments).compared)


def accuracy_frames(records: Sequence[Record], environments: Environments) -> list[Frame]:
    """A frame for each accuracy setting: dataset, splits, network and recipe on one machine."""
    return list(arrange(records, environments).scored)


def sheet(frames: Sequence[Frame]) -> tuple[list[str], Iterator[list[Any]]]:
    """Columns and rows of all frames below each other, with the columns of their settings in front."""
    settings = dict.fromkeys(key for frame in frames for key in frame.setting) or dict.fromkeys(_SHARED)
    own = dict.fromkeys(key for frame in frames for row in frame.table[:1] for key in row) or dict.fromkeys(ROW)
    columns = [key for key in {**settings, **own} if key not in ("seed_miou", "seed_gain")]

    def rows() -> Iterator[list[Any]]:
        for frame in frames:
            plain = {
                key: json.dumps(value) if isinstance(value, list) else value for key, value in frame.setting.items()
            }
            for row in frame.table:
                yield list(map({**row, **plain}.get, columns))

    return columns, rows()


@functools.lru_cache(maxsize=1024)
def _setting_keys(own: Sequence[str], keys: tuple[str, ...]) -> list[str]:
    """Those of a record's keys that make its setting, in the order of the columns."""
    nested = sorted(key for key in keys if key.startswith(("network.", "recipe.", "inference.")) and key != _PATH)
    return [key for key in (*_SHARED, *own, *nested) if key in keys]


def _cost_row(trials: Sequence[Record], environment: Mapping[str, Any], timed: Timings) -> Row:
    modes = {str(trial["mode"]): trial for trial in trials}
    return cost_row(trials, timed) | work_columns(modes, environment)


def _settings(records: Iterable[Record], task: str) -> list[tuple[dict[str, Any], list[list[Record]]]]:
    """Settings in the order of their first record, each with the records of its rows."""
    own = _COST if task == "cost" else _ACCURACY
    groups: dict[str, tuple[dict[str, Any], list[Record]]] = {}
    for record in records:
        if record["task"] == task:
            setting = {key: record[key] for key in _setting_keys(own, tuple(record))}
            groups.setdefault(str(setting), (setting, []))[1].append(record)
    return [(setting, _by_row(group)) for setting, group in groups.values()]


def _by_row(group: Iterable[Record]) -> list[list[Record]]:
    """Records of each row: of several of one mode and seed the latest, and of the latest source alone."""
    rows: dict[tuple[Any, ...], dict[tuple[Any, ...], Record]] = {}
    for record in sorted(group, key=lambda item: str(item["started"])):
        trials = rows.setdefault(tuple(record[key] for key in ROW[:3]), {})
        trials[record.get("mode"), record.get("seed")] = record
    chosen: list[list[Record]] = []
    for trials in rows.values():
        latest = max(trials.values(), key=lambda item: str(item["started"]))["source"]
        chosen.append([record for record in trials.values() if record["source"] == latest])
    return chosen


def _told_apart(scored: Iterable[Frame]) -> list[Frame]:
    """The frames, each with the fields in which those of its title differ."""
    titled: dict[str, list[Frame]] = {}
    for frame in scored:
        titled.setdefault(accuracy_title(frame.accuracy), []).append(frame)
    told: list[Frame] = []
    for frames in titled.values():
        keys = dict.fromkeys(key for frame in frames for key in frame.accuracy if key not in _SHARED)
        differ = [key for key in keys if len({str(frame.accuracy.get(key)) for frame in frames}) > 1]
        for frame in frames:
            own = {key: frame.accuracy[key] for key in differ if key in frame.accuracy}
            told.append(dataclasses.replace(frame, apart=details(own)))
    return told


def _join(costs: Sequence[Row], scores: Sequence[Row]) -> list[Row]:
    """Rows of cost with their scores behind them, borrowed ones after own ones, and scores without cost last."""
    own = {_key(row): row for row in scores}
    references = {key[::2]: row for key, row in own.items() if key[1] == "reference"}
    costed = {_key(row) for row in costs}
    direct = [{**row, **own[_key(row)]} for row in costs if _key(row) in own]
    rest = [row for row in costs if _key(row) not in own]
    borrowed = [{**row, **references.get(_key(row)[::2], {}), **row} for row in rest]
    return _ordered([*direct, *borrowed, *(row for row in scores if _key(row) not in costed)])


def _key(row: Row) -> tuple[str, str, str]:
    return row["operator"], row["implementation"], row["settings"]


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """Controls first, as they were recorded, then by mIoU descending; without it, as they were recorded."""

    def place(row: Row) -> tuple[bool, float]:
        score = row.get("miou")
        return row["kind"] != "control", 0.0 if row["kind"] == "control" else 1.0 if score is None else -score

    ordered = sorted(rows, key=place)
    if len(set(map(tuple, rows))) == 1:
        return ordered
    columns = dict.fromkeys(key for row in sorted(rows, key=lambda row: "status_forward" not in row) for key in row)
    return [{key: row.get(key) for key in columns} for row in ordered]


def _place(frame: Frame) -> tuple[Any, ...]:
    setting = frame.setting
    level = setting.get("level")
    return (
        setting["protocol"],
        setting["device"],
        setting["environment"],
        _LEVELS.index(level) if level in _LEVELS else len(_LEVELS),
        setting.get("channels", 0),
        setting.get("batch", 0),
        setting.get("dtype", ""),
        setting.get("height", 0) * setting.get("width", 0),
        setting.get("dataset", ""),
        json.dumps(setting, sort_keys=True),
    )
