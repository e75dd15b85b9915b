"""`prepare_data.py`: says where a dataset comes from, downloads, converts, and checks what is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from attnbench.cli.arguments import Parser, console_of_width
from attnbench.errors import UsageError

if TYPE_CHECKING:
    from attnbench.data.inspection import Inspection
    from attnbench.data.preparing.sources import Source

PROG = "prepare_data.py"
KEPT = "what was downloaded is kept"
"""What is said where Ctrl-C ends it."""
_SHOWN_PROBLEMS = 20
_EPILOG = """\
examples:
  python scripts/prepare_data.py voc --data-root DIR            # download, convert, check
  python scripts/prepare_data.py cityscapes --data-root DIR     # says what to download by hand, then unpacks it
  python scripts/prepare_data.py camvid --data-root DIR --check # only check what is there
  python scripts/prepare_data.py ade20k --data-root DIR --dry-run

A download that was stopped goes on when the same command is given again. Layouts and terms: docs/datasets.md.
"""


def _parser() -> Parser:
    parser = Parser(PROG, "Download, convert and check a dataset.", _EPILOG)
    parser.add_argument("name", metavar="NAME", help="dataset, for example voc, or the name in your own dataset.toml")
    parser.add_argument("--data-root", metavar="DIR", help="folder of the data (default: $ATTNBENCH_DATA)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="only check what is there: counts, pairs, sizes, labels")
    mode.add_argument("--dry-run", action="store_true", help="only say what comes from where")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares the dataset that the command line names; returns the exit code."""
    parsed = _parser().parse(arguments)
    given = parsed.data_root or os.environ.get("ATTNBENCH_DATA")
    if not given:
        raise UsageError("data root: expected a folder (--data-root or ATTNBENCH_DATA), got none")
    root = Path(given)
    console = console_of_width()

    from attnbench.data import dataset_splits
    from attnbench.data.preparing.prepare import is_there, place, prepare
    from attnbench.data.preparing.sources import SOURCES

    if parsed.name == "context":
        console.print("context is drawn, not downloaded: nothing to prepare")
        return 0
    source = SOURCES.get(parsed.name)
    # the files of trainval are those of train and val
    splits = [split for split in dataset_splits(parsed.name, root) if source is None or split != "trainval"]
    if source is not None and not parsed.check:
        there = is_there(parsed.name, root)
        around = root if there else place(parsed.name, source, root)
        console.print(_plan(source, around))
        if parsed.dry_run:
            return 0
        if there:
            console.print("all files are there: nothing to download")
        else:
            with _Bar(console) as bar:
                prepare(source, around, bar.show)
    elif parsed.dry_run:
        raise UsageError(f"--dry-run: expected a dataset that is downloaded, got {parsed.name!r}")
    return _check(parsed.name, splits, root, console)


def _plan(source: Source, root: Path) -> Table:
    from attnbench.data.preparing.prepare import DOWNLOADS, state

    caption = escape(f"{source.page}\n{source.terms}\nArchives lie in {root / DOWNLOADS}.")
    table = Table("file", "size", "state", "checksum", title=source.title, caption=caption)
    table.add_column("from", overflow="fold")
    for archive in source.archives:
        published = (archive.checksum or "none published").partition(":")[0]
        table.add_row(archive.file, archive.size, state(archive, root), published, archive.url or source.page)
    return table


def _check(name: str, splits: Sequence[str], root: Path, console: Console) -> int:
    """Prints what each split holds; a `UsageError` if anything is wrong."""
    problems: list[str] = []
    table = Table(
        "split", "images", "sizes", "ignored pixels", "classes without a pixel", title=f"{name}: what is there"
    )
    with _Bar(console) as bar:
        for split in splits:
            try:
                found, classes = _inspected(
                    name, split, root, lambda *done, split=split: bar.show(f"check {split}", *done)
                )
            except UsageError as error:
                problems.append(str(error))
                continue
            problems.extend(found.problems)
            table.add_row(*_row(found, classes))
    console.print(table)
    for problem in problems[:_SHOWN_PROBLEMS]:
        console.print(escape(problem), soft_wrap=True, highlight=False)
    if problems:
        raise UsageError(f"{name}: expected sound files, got {len(problems)} problem(s); the first: {problems[0]}")
    console.print(f"{name}: counts, pairs, sizes and labels are as expected")
    return 0


def _inspected(
    name: str, split: str, root: Path, progress: Callable[[int, int], None]
) -> tuple[Inspection, tuple[str, ...]]:
    from attnbench.data import build_dataset
    from attnbench.data.files import FileDataset
    from attnbench.data.inspection import inspect

    dataset = build_dataset(name, split=split, root=root)
    assert isinstance(dataset, FileDataset)
    return inspect(dataset, progress), dataset.classes


def _row(found: Inspection, classes: tuple[str, ...]) -> tuple[str, ...]:
    heights, widths = zip(*found.sizes, strict=True) if found.sizes else ((0,), (0,))
    small, large = f"{min(heights)}x{min(widths)}", f"{max(heights)}x{max(widths)}"
    absent = ", ".join(classes[label] for label in found.absent)
    sizes = small if small == large else f"{small} to {large}"
    return found.split, str(found.images), sizes, f"{100 * found.ignored:.2f} %", escape(absent) or "none"


class _Bar:
    """A progress bar whose line changes with what is being done."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task: TaskID | None = None
        self._what = ""

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, what: str, done: int, total: int | None) -> None:
        """Moves the bar; a new `what` starts a new line and notes the old one as done."""
        if self._task is None or what != self._what:
            if self._task is not None:
                self._progress.remove_task(self._task)
            if not self._progress.console.is_terminal:
                self._progress.console.print(what, highlight=False)
            self._task = self._progress.add_task(escape(what), total=total, amount="")
            self._what = what
        amount = _amount(what, done, total)
        self._progress.update(self._task, completed=done, total=total, amount=amount)


def _amount(what: str, done: int, total: int | None) -> str:
    if what.startswith("download"):
        whole = "" if total is None else f" of {total / 1e6:.1f}"
        return f"{done / 1e6:.1f}{whole} MB"
    return f"{done}" if total is None else f"{done} of {total}"
