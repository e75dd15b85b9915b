"""Where the figures come from: machines, software, commits, dates and the protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from attnbench.records import Record
from attnbench.report.wording import STATUSES, distinct, present

Environments = Mapping[str, Mapping[str, Any]]
"""Fingerprint by environment hash."""


BETWEEN = " or "
"""Stands between the values of a field over which trainings are pooled."""


def machine(environment: Mapping[str, Any], threads: int | str | None = None) -> str:
    """Processor, threads and torch in one line; empty where the environment is not known.

    Args:
        environment: the fingerprint.
        threads: those of each training run, which shares the machine with others; none takes the environment's.
    """
    flat = flatten(environment)
    used = str(threads or flat.get("threads.intra_op", ""))
    parts = [flat.get("cuda.name", ""), flat.get("cpu.model", "")]
    parts.append(f"{used} thread{'' if used == '1' else 's'}" if used and flat else "")
    parts.append(f"torch {flat['torch']}" if "torch" in flat else "")
    return ", ".join(filter(None, parts))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested plain data as `dotted key -> text`; what is empty is left out."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif present(value) and value != []:
            flat[name] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return flat


def provenance(records: Sequence[Record]) -> dict[str, str]:
    """Facts that hold for the records as a whole."""
    counts = Counter(str(record["status"]) for record in records)
    failed = ", ".join(f"{number} {STATUSES[status]}" for status, number in sorted(counts.items()) if status != "ok")
    return {
        "records": f"{len(records)} ({counts['ok']} ok{f', {failed}' if failed else ''})",
        "date": dates(records),
        "commit": ", ".join(commits(records)),
        "protocol": ", ".join(str(protocol) for protocol in sorted({record["protocol"] for record in records})),
    }


def commits(records: Sequence[Record]) -> list[str]:
    """Commits that measured, in the order of their first record, shortened; `+` marks uncommitted changes."""
    full = distinct(record["commit"] for record in records)
    return [
        commit if commit == "unknown" else commit[:10] + ("+" if commit.endswith("+changes") else "") for commit in full
    ]


def dates(records: Sequence[Record]) -> str:
    """Day of the first record, and of the last where it is another."""
    days = sorted({str(record["started"])[:10] for record in records})
    return "" if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
