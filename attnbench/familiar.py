"""The quick way through validation: a record like one that passed, with numbers within their bounds, passes too."""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_BOUNDS = {"type", "minimum", "maximum", "exclusiveMinimum"}
_UNIQUE = ("identity", "started")
_MOST = 20_000
_NONE = type(None)


@dataclass(frozen=True)
class _Bounds:
    """What a number may be; nothing that is not finite fits."""

    kinds: frozenset[type]
    low: float
    high: float
    excluded: float | None
    fewest: int = 0

    def hold(self, value: Any) -> bool:
        return type(value) in self.kinds and self.low <= value <= self.high and value != self.excluded

    def hold_all(self, values: Any) -> bool:
        if type(values) is not list or len(values) < self.fewest or not set(map(type, values)) <= self.kinds:
            return False
        if _NONE in self.kinds:
            values = [value for value in values if value is not None]
        # Where one value is not a number, a sum is none either; extremes might hide it.
        total = sum(values)
        return not values or (
            total - total == 0 and self.low <= min(values) != self.excluded and max(values) <= self.high
        )


@dataclass(frozen=True)
class _Shape:
    """Records of one sequence of names: which of them hold numbers, series of numbers, patterns, and all else."""

    numbers: tuple[tuple[str, _Bounds], ...]
    series: tuple[tuple[str, _Bounds], ...]
    patterns: tuple[tuple[str, re.Pattern[str]], ...]
    rest: Callable[[Mapping[str, Any]], Any]
    passed: set[str] = field(default_factory=set)


class Familiar:
    """Remembers records that a schema let pass, and knows others that it would let pass for the same reasons.

    In a schema whose only conditions across fields are on the set of names, `status` and `task`, a record is valid if
    another of the same names was that differs in numbers within their bounds, in lists of such, and in what a pattern
    describes. Whatever this does not know is not invalid: it has to be asked of the schema.

    Args:
        properties: the rules of the schema, by field.
    """

    def __init__(self, properties: Mapping[str, Any]) -> None:
        self._patterns = {name: re.compile(properties[name]["pattern"]) for name in _UNIQUE}
        self._numbers = {name: bounds for name, rule in properties.items() if (bounds := _bounds(rule))}
        self._series = {
            name: bounds
            for name, rule in properties.items()
            if set(rule) <= {"type", "items", "minItems"} and (bounds := _bounds(rule.get("items", {}), **rule))
        }
        self._shapes: dict[tuple[str, ...], _Shape] = {}

    def learn(self, record: Mapping[str, Any]) -> None:
        """Takes note of a record that the schema let pass."""
        names = tuple(record)
        if names not in self._shapes:
            if len(self._shapes) > _MOST:
                self._shapes.clear()
            self._shapes[names] = self._shape(names)
        shape = self._shapes[names]
        if len(shape.passed) > _MOST:
            shape.passed.clear()
        shape.passed.add(repr(shape.rest(record)))

    def knows(self, record: Mapping[str, Any]) -> bool:
        """Whether `record` is certain to be valid."""
        shape = self._shapes.get(tuple(record))
        if shape is None or repr(shape.rest(record)) not in shape.passed:
            return False
        for name, bounds in shape.numbers:
            if not bounds.hold(record[name]):
                return False
        for name, pattern in shape.patterns:
            value = record[name]
            if type(value) is not str or not pattern.fullmatch(value):
                return False
        return all(bounds.hold_all(record[name]) for name, bounds in shape.series)

    def _shape(self, names: tuple[str, ...]) -> _Shape:
        numbers = tuple((name, self._numbers[name]) for name in names if name in self._numbers)
        series = tuple((name, self._series[name]) for name in names if name in self._series)
        patterns = tuple((name, self._patterns[name]) for name in names if name in self._patterns)
        checked = {*self._numbers, *self._series, *self._patterns}
        return _Shape(numbers, series, patterns, operator.itemgetter(*(name for name in names if name not in checked)))


def _bounds(rule: Mapping[str, Any], minItems: int = 0, **_: Any) -> _Bounds | None:  # noqa: N803 - JSON Schema's word
    names = rule.get("type")
    kinds = {"integer": (int,), "number": (int, float), str(["number", "null"]): (int, float, _NONE)}.get(str(names))
    if kinds is None or not set(rule) <= _BOUNDS:
        return None
    largest = sys.float_info.max
    low = max(rule.get("minimum", -largest), rule.get("exclusiveMinimum", -largest))
    excluded = rule.get("exclusiveMinimum")
    return _Bounds(frozenset(kinds), low, rule.get("maximum", largest), excluded, minItems)
