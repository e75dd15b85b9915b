"""`repeatability.py`: two runs of one comparison, held against each other: latency, and scores of one seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attnbench import records, report
from attnbench.cli.arguments import Parser, words
from attnbench.errors import UsageError
from attnbench.report.render import to_markdown
from attnbench.report.repeat import repeat_table, repeats, sentences
from attnbench.report.retrained import differing, retrained, retrained_table, sentence

PROG = "repeatability.py"

_EPILOG = """\
example:
  python scripts/repeatability.py run-1 run-2 --document docs/measuring.md --block repeat
  python scripts/repeatability.py results/reference/xeon-2c/accuracy results/reference/epyc-2c/accuracy --without asp_oc
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints how far latency ratios and scores of two runs agree, and puts the tables into a document."""
    parser = Parser(PROG, "Hold two complete runs of one comparison against each other.", _EPILOG)
    parser.add_argument("folders", nargs=2, type=Path, metavar="FOLDER", help="folders of results")
    parser.add_argument("--document", type=Path, metavar="FILE.md", help="put the table into this document")
    parser.add_argument("--block", default="repeat", metavar="NAME", help="name of the document's block")
    parser.add_argument(
        "--without", type=words, default=[], metavar="A,B", help="operators that were changed between the two"
    )
    parser.add_argument(
        "--ignoring", type=words, default=[], metavar="A,B", help="settings of a training that may differ: recipe.amp"
    )
    parsed = parser.parse(arguments)
    first, second = (records.load(folder).records for folder in parsed.folders)
    other = differing(first, second, parsed.ignoring)
    timed, trained = repeats(first, second), retrained(first, second, parsed.without, parsed.ignoring)
    if not timed and not trained:
        folders = ", ".join(map(str, parsed.folders))
        raise UsageError(f"folders: expected two runs that timed or trained the same trials, got {folders}")
    told = [*sentences(timed), *([sentence(trained, other)] if trained else [])]
    print(*told, sep="\n")
    if parsed.document is not None:
        if not parsed.document.is_file():
            raise UsageError(f"document: expected an existing file, got {str(parsed.document)!r}")
        tables = [*([repeat_table(timed)] if timed else []), *([retrained_table(trained)] if trained else [])]
        notes = [f"- {line}" for line in (*told, *(line for table in tables for line in table.legend))]
        block = "\n".join([*notes, *(part for table in tables for part in ("", to_markdown(table)))])
        text = parsed.document.read_text(encoding="utf-8")
        parsed.document.write_text(report.replace_block(text, parsed.block, block), encoding="utf-8")
    return 0
