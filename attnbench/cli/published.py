"""`compare.py --published`: published figures computed again."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

DEFAULT_OUTPUT = Path("results/reference")


def report_published(console: Console, folder: Path) -> int:
    """Computes every published row, writes the report into `folder` and prints it; returns the exit code.

    Raises:
        UsageError: if the folder cannot be written.
    """
    from attnbench.published import load_figures, load_zoo
    from attnbench.report.published import counts, published_tables, write_published
    from attnbench.reproducing import reproduce, zoo_entries

    zoo = load_zoo()
    with console.status("computing published rows"):
        outcomes = reproduce(load_figures())
    with console.status("computing heads"):
        entries = zoo_entries(zoo)
    written = write_published(outcomes, entries, zoo, folder)
    for table in published_tables(written):
        console.print(table)
    console.print(counts(outcomes), highlight=False)
    console.print(f"report: {', '.join(map(str, written.files))}", highlight=False, markup=False)
    return 0
