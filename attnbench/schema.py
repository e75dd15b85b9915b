"""What a record must look like: the protocol, the published JSON Schema, and lines that become records."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from importlib import resources
from typing import Any

import fastjsonschema
import orjson

from attnbench.familiar import Familiar

PROTOCOL = 1
"""Version of what is measured and how; records of different versions never share a table."""

Record = dict[str, Any]
_TORN = "torn or not JSON"


@functools.cache
def _schema() -> dict[str, Any]:
    loaded: dict[str, Any] = orjson.loads((resources.files("attnbench") / "records.schema.json").read_bytes())
    return loaded


@functools.cache
def _validator() -> Callable[[Record], Record]:
    compiled: Callable[[Record], Record] = fastjsonschema.compile(_schema())
    return compiled


@functools.cache
def _familiar() -> Familiar:
    return Familiar(_schema()["properties"])


def validate(record: Record) -> None:
    """Holds `record` against `records.schema.json`, and every number against being finite.

    Raises:
        ValueError: naming the field and what was expected.
    """
    if not isinstance(record, dict):
        raise ValueError(f"record: expected an object, got {type(record).__name__}")
    protocol = record.get("protocol")
    if protocol != PROTOCOL:
        raise ValueError(
            f"record: expected protocol {PROTOCOL}, got {protocol!r}; measure again, or read it with that version"
        )
    if _familiar().knows(record):
        return
    _check_finite(record)
    try:
        _validator()(record)
    except fastjsonschema.JsonSchemaValueException as error:
        raise ValueError(f"record: {error.message.replace('data.', '', 1)}") from error
    _familiar().learn(record)


def _check_finite(record: Record) -> None:
    """JSON has no word for what is not a number or infinite, and neither has a measurement."""
    for name, value in record.items():
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"record: {name} must be finite, got {item}")


def parse(line: bytes) -> Record:
    """The record that one line of a file holds.

    Raises:
        ValueError: if it is not JSON, names a field twice, or does not fit the schema.

    Example:
        >>> parse(b'{"protocol": 1, "protocol": 1}')
        Traceback (most recent call last):
        ...
        ValueError: field 'protocol' stands there twice
    """
    try:
        record: Record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(_TORN) from error
    if isinstance(record, dict) and not _plainly_distinct(line, len(record)):
        _reject_duplicates(line)
    validate(record)
    return record


def _plainly_distinct(line: bytes, fields: int) -> bool:
    """Whether `line` ends as many names as there are fields; a quote inside a text has a backslash in front."""
    if b" :" in line or b"\t" in line or b"\r" in line:
        return False
    return line.count(b'":') - line.count(b'\\":') == fields


def _reject_duplicates(line: bytes) -> None:
    def distinct(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            twice = next(name for position, name in enumerate(names) if name in names[:position])
            raise ValueError(f"field {twice!r} stands there twice")

    try:
        json.loads(line, object_pairs_hook=distinct)
    except RecursionError as error:
        raise ValueError(_TORN) from error
