"""`report.py`: tables, figures and page from folders of records, and the tables inside a document."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnbench import records, report
from attnbench.cli.arguments import Parser, console_of_width, words
from attnbench.errors import UsageError
from attnbench.reading import paused_collector
from attnbench.report.pooled import POOLABLE, pool

PROG = "report.py"

_EPILOG = """\
examples:
  python scripts/report.py results/local
  python scripts/report.py results/local --document README.md --block default
  python scripts/report.py results/local --document paper.md --section Growth --block growth
  python scripts/report.py node-1 node-2 --pool environment --output results/local/all

A document holds its table between <!-- NAME:begin --> and <!-- NAME:end -->.
"""


def _parser() -> Parser:
    parser = Parser(PROG, "Write the report of one or more folders of records again, without measuring.", _EPILOG)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folders that hold records/")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the report goes (default: the first folder)")
    parser.add_argument("--document", type=Path, metavar="FILE.md", help="put the tables into this document, too")
    parser.add_argument(
        "--section",
        metavar="HEADING",
        help="what the document gets: the tables of this section of the report, such as Growth, not the comparison",
    )
    parser.add_argument("--block", default="results", metavar="NAME", help="name of the document's block")
    parser.add_argument(
        "--measured-by", default="make compare", metavar="COMMAND", help="the command that the document names as origin"
    )
    parser.add_argument(
        "--pool",
        type=words,
        default=[],
        metavar="A,B",
        help=f"one row for seeds whose trainings differ in these alone; gains stay within: {', '.join(POOLABLE)}",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the report that the command line asks for; returns the exit code."""
    parsed = _parser().parse(arguments)
    with paused_collector():
        return _report(parsed)


def _report(parsed: argparse.Namespace) -> int:
    found: dict[str, records.Record] = {}
    environments: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for folder in parsed.folders:
        if not (folder / "records").is_dir():
            raise UsageError(f"folder {str(folder)!r}: expected a folder that holds records/, got none there")
        loaded = records.load(folder)
        for record in loaded.records:
            found.setdefault(record["identity"], record)
        for key, environment in records.load_environments(folder).items():
            environments[key] = environments.get(key, {}) | environment
        problems += loaded.problems
    shown, machines, left_out = pool(list(found.values()), environments, parsed.pool)
    problems += left_out
    output = parsed.output or parsed.folders[0]
    written = report.write_report(shown, machines, output, problems=problems)
    console = console_of_width()
    for table in report.terminal_tables(written):
        console.print(table)
    if parsed.document is not None:
        if not parsed.document.is_file():
            raise UsageError(f"document: expected an existing file, got {str(parsed.document)!r}")
        block = (
            report.section_block(shown, machines, parsed.section, command=parsed.measured_by)
            if parsed.section
            else report.readme_block(shown, machines, command=parsed.measured_by)
        )
        text = report.replace_block(parsed.document.read_text(encoding="utf-8"), parsed.block, block)
        parsed.document.write_text(text, encoding="utf-8")
    return 0
