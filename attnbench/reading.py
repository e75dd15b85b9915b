"""Folders of records read back: complete records, and a sentence for everything that was set aside."""

from __future__ import annotations

import codecs
import contextlib
import gc
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench.machine import rates, read_machine
from attnbench.schema import Record, parse

LONGEST_LINE = 16 << 20
"""Bytes from which a line is no record of ours: the longest hold some kilobytes."""

_TOLD = 20
"""Lines of one file that are reported one by one."""


@dataclass(frozen=True)
class Loaded:
    """What a folder of records holds.

    Args:
        records: complete records, the earliest of each identity, in the order of their start.
        problems: a sentence for each line or file that was set aside.
    """

    records: list[Record]
    problems: list[str]


def load(folder: Path) -> Loaded:
    """Reads all records under `folder/records/`; what cannot be read is set aside and reported, never fatal."""
    kept: dict[str, Record] = {}
    problems: list[str] = []
    with paused_collector():
        for path in _files(folder / "records", ".jsonl", problems):
            for record in _read(path, problems):
                present = kept.get(record["identity"])
                if present is None or record["started"] < present["started"]:
                    kept[record["identity"]] = record
        return Loaded(sorted(kept.values(), key=lambda record: str(record["started"])), problems)


def _files(folder: Path, suffix: str, problems: list[str]) -> list[Path]:
    """Regular files in `folder`; to open anything else could block or never end."""
    found: list[Path] = []
    try:
        named = sorted(path for path in folder.iterdir() if path.suffix == suffix)
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{folder.name}: not read: {error.strerror or error}")
        return []
    for path in named:
        try:
            regular = stat.S_ISREG(path.stat().st_mode)
        except OSError as error:
            problems.append(f"{path.name!r}: not read: {error.strerror or error}")
            continue
        if regular:
            found.append(path)
        else:
            problems.append(f"{path.name!r}: not read: expected a file, got something else of that name")
    return found


def _read(path: Path, problems: list[str]) -> Iterator[Record]:
    aside = 0
    try:
        for number, line in enumerate(_lines(path), start=1):
            if line.isspace():
                continue
            try:
                yield _parse(line)
            except ValueError as error:
                aside += 1
                if aside <= _TOLD:
                    problems.append(f"{path.name}, line {number}: set aside: {error}")
    except OSError as error:
        problems.append(f"{path.name}: not read to its end: {error.strerror or error}")
    if aside > _TOLD:
        problems.append(f"{path.name}: {aside - _TOLD} more line(s) set aside")


def _parse(line: bytes) -> Record:
    if len(line) > LONGEST_LINE:
        raise ValueError(f"expected at most {LONGEST_LINE >> 20} MiB in one line, got more")
    return parse(line)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, without a byte order mark in front; of one that is too long, as much as shows it."""
    with path.open("rb") as file:
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        while line := file.readline(LONGEST_LINE + 1):
            yield line
            while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE + 1)
                if not line:
                    return


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Without garbage collection: records hold no cycles, and looking for them among millions of values takes long."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_environments(folder: Path) -> dict[str, dict[str, Any]]:
    """The environments that the records of `folder` refer to, by hash; one that cannot be read is left out.

    Where the roof of the machine was measured, its rates stand in the environment as `roofline`.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in _files(folder / "environments", ".json", []):
        try:
            environment = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(environment, dict):
            measured = rates(read_machine(folder, path.stem))
            found[path.stem] = {**environment, **({"roofline": measured} if measured else {})}
    return found
