"""Records as data frames: a frame for each setting, a row for each operator, implementation and settings.

A setting is everything that must be equal for two rows to be comparable: protocol, environment, device, and
what was measured or trained. Two records of one trial in one setting differ in the source of the operator
alone; the later counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from attnbench.records import Record
from attnbench.report.rows import MODES, ROW, accuracy_row, add_gains, add_ranks, cost_row

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
    "weights_hash",
    "threads",
)
_LEVELS = ("operator", "core", "head", "network")
_PATH = "network.backbone_weights"
_COUNTED = ("failed_seeds", "seeds", "gain_seeds", *(f"rank{end}_{mode}" for end in ("", "_worst") for mode in MODES))


@dataclass(frozen=True, eq=False)
class Frame:
    """Comparable rows.

    Args:
        cost: fields of the cost setting; empty where the rows hold accuracy alone.
        accuracy: fields of the accuracy setting; empty where none was measured.
        environment: fingerprint of the machine and software; empty where it is not known.
        rows: one row for each operator, implementation and hyper-parameters; controls first, then by mIoU.

    """

    cost: Mapping[str, Any]
    accuracy: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: pd.DataFrame

    @property
    def setting(self) -> dict[str, Any]:
        """Fields of both settings."""
        return {**self.cost, **self.accuracy}


def comparison_frames(records: Sequence[Record], environments: Mapping[str, Mapping[str, Any]]) -> list[Frame]:
    """A frame for each cost setting, with each accuracy setting of the same protocol, environment and device.

    An implementation other than the reference computes the same function and has the reference's accuracy,
    unless it was trained itself; the column `accuracy_of` says which. An operator that was trained and not
    measured is a row too. Predicted cost stands alone.
    """
    scored = accuracy_frames(records, environments)
    frames: list[Frame] = []
    for setting, group in _by_setting(records, "cost"):
        rows = [cost_row(trials) for trials in _by_row(group)]
        add_ranks(rows)
        costs = pd.DataFrame(rows)
        environment = environments.get(setting["environment"], {})
        partners = [frame for frame in scored if all(frame.accuracy[key] == setting[key] for key in _SHARED)]
        partners = [] if setting.get("predicted") else partners
        frames += [Frame(setting, partner.accuracy, environment, _join(costs, partner.rows)) for partner in partners]
        if not partners:
            frames.append(Frame(setting, {}, environment, _ordered(costs)))
    return sorted(frames, key=_place)


def accuracy_frames(records: Sequence[Record], environments: Mapping[str, Mapping[str, Any]]) -> list[Frame]:
    """A frame for each accuracy setting: dataset, splits, network and recipe on one machine."""
    frames: list[Frame] = []
    for setting, group in _by_setting(records, "accuracy"):
        rows = [accuracy_row(trials) for trials in _by_row(group)]
        add_gains(rows)
        frames.append(Frame({}, setting, environments.get(setting["environment"], {}), _ordered(pd.DataFrame(rows))))
    return sorted(frames, key=_place)


def superseded(records: Sequence[Record]) -> int:
    """Number of records that a later record of the same trial in the same setting replaces."""
    shown = {
        id(record)
        for task in ("cost", "accuracy")
        for _, group in _by_setting(records, task)
        for trials in _by_row(group)
        for record in trials
    }
    return len(records) - len(shown)


def all_frames(records: Sequence[Record], environments: Mapping[str, Mapping[str, Any]]) -> list[Frame]:
    """The comparisons, and behind them the accuracy that was joined to none of them."""
    compared = comparison_frames(records, environments)
    joined = [dict(frame.accuracy) for frame in compared]
    scored = accuracy_frames(records, environments)
    return [*compared, *(frame for frame in scored if dict(frame.accuracy) not in joined)]


def sheet(frames: Sequence[Frame]) -> pd.DataFrame:
    """All frames below each other, with the columns of their settings in front."""
    parts: list[pd.DataFrame] = []
    for frame in frames:
        part = frame.rows.drop(columns=["seed_miou"], errors="ignore").copy()
        for position, (key, value) in enumerate(frame.setting.items()):
            part.insert(position, key, json.dumps(value) if isinstance(value, list) else value)
        parts.append(part.astype(object))
    if not parts:
        return pd.DataFrame(columns=[*_SHARED, *ROW])
    whole = pd.concat(parts, ignore_index=True)
    settings = list(dict.fromkeys(key for frame in frames for key in frame.setting))
    whole = whole[[*settings, *(column for column in whole.columns if column not in settings)]]
    for key in _COUNTED:
        if key in whole:
            whole[key] = whole[key].astype("Int64")
    return whole


def _setting(record: Record, task: str) -> dict[str, Any]:
    own = _COST if task == "cost" else _ACCURACY
    kept = {key: record[key] for key in (*_SHARED, *own) if key in record}
    nested = {key: record[key] for key in sorted(record) if key.startswith(("network.", "recipe.")) and key != _PATH}
    return {**kept, **nested}


def _by_setting(records: Iterable[Record], task: str) -> list[tuple[dict[str, Any], list[Record]]]:
    groups: dict[str, tuple[dict[str, Any], list[Record]]] = {}
    for record in records:
        if record["task"] == task:
            setting = _setting(record, task)
            groups.setdefault(json.dumps(setting, sort_keys=True), (setting, []))[1].append(record)
    return list(groups.values())


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


def _join(costs: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    keys = list(ROW)
    described = [*keys, "title", "kind"]
    own = scores.drop(columns=["title", "kind"])
    reference = own[own["implementation"] == "reference"].drop(columns=["implementation"])
    direct = costs.merge(own, on=keys, how="inner")
    rest = costs[~_key(costs, keys).isin(_key(direct, keys))]
    borrowed = rest.merge(reference, on=["operator", "settings"], how="left")
    unmeasured = scores[~_key(scores, keys).isin(_key(costs, keys))]
    parts = [part.astype(object) for part in (direct, borrowed, unmeasured) if not part.empty]
    joined = pd.concat(parts, ignore_index=True).infer_objects()
    rest_columns = [column for column in joined.columns if column not in described]
    return _ordered(joined[[*described, *rest_columns]])


def _key(frame: pd.DataFrame, keys: Sequence[str]) -> pd.Series[str]:
    return pd.Series(
        [json.dumps([row[key] for key in keys]) for row in frame.to_dict("records")],
        index=frame.index,
        dtype=object,
    )


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """Controls first, as they were recorded, then by mIoU descending; without it, as they were recorded."""
    place = (rows["kind"] != "control").astype(int)
    score = pd.to_numeric(rows["miou"]) if "miou" in rows else pd.Series(0.0, index=rows.index)
    keyed = rows.assign(_place=place, _score=(-score).fillna(1.0).where(place == 1, 0.0))
    ordered = keyed.sort_values(["_place", "_score"], kind="stable", ignore_index=True)
    return ordered.drop(columns=["_place", "_score"])


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
