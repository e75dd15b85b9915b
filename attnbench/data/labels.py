"""Which class each value in the mask files of a dataset stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attnbench.errors import UsageError
from attnbench.metrics import IGNORE_INDEX

_STRANGE = -1


class Labels:
    """Table from the values of mask files to classes: a value is a class, does not count, or must not occur.

    Args:
        classes: class of each value that stands for one.
        ignored: values of pixels that do not count; they become 255.

    Raises:
        UsageError: if a value is not in 0..255, or stands for two things.

    Example:
        >>> labels = Labels({value: value - 1 for value in range(1, 151)}, ignored=[0])
        >>> labels.targets(np.array([[0, 1], [2, 150]], np.uint8), Path("a.png")).tolist()
        [[255, 0], [1, 149]]
        >>> str(labels)
        '0..150'
    """

    def __init__(self, classes: Mapping[int, int], ignored: Iterable[int] = ()) -> None:
        ignored = tuple(ignored)
        for value in (*classes, *ignored):
            if not 0 <= value <= 255:
                raise UsageError(f"labels: expected values in 0..255, got {value}")
        both = sorted(set(classes) & set(ignored))
        if both:
            raise UsageError(f"labels: expected ignored values that stand for no class, got {both[0]}")
        self._table = np.full(256, _STRANGE, np.int16)
        for value, label in classes.items():
            self._table[value] = label
        self._table[list(ignored)] = IGNORE_INDEX

    def targets(self, values: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
        """Classes of a mask's values, with 255 where a pixel does not count.

        Args:
            values: what the file has.
            path: the file, for the error.

        Raises:
            UsageError: if a value must not occur.
        """
        occurs = np.bincount(values.ravel(), minlength=256) > 0
        found = np.flatnonzero(occurs & (self._table == _STRANGE))
        if len(found):
            raise UsageError(f"mask {str(path)!r}: expected labels {self}, got {', '.join(map(str, found[:5]))}")
        return self._table.astype(np.uint8)[values]

    def __str__(self) -> str:
        known = np.flatnonzero(self._table != _STRANGE)
        runs = np.split(known, np.flatnonzero(np.diff(known) != 1) + 1)
        return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def plain(num_classes: int, ignored: Iterable[int] = ()) -> Labels:
    """Values 0 to `num_classes - 1` are the classes themselves.

    Example:
        >>> str(plain(21, ignored=[255]))
        '0..20, 255'
    """
    return Labels({value: value for value in range(num_classes)}, ignored)
