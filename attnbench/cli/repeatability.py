"""`repeatability.py`: two runs of one comparison, held against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attnbench import records, report
from attnbench.cli.arguments import Parser
from attnbench.errors import UsageError
from attnbench.report.render import to_markdown
from attnbench.report.repeat import repeat_table, repeats, sentences

PROG = "repeatability.py"

_EPILOG = """\
example:
  python scripts/repeatability.py run-1 run-2 --document docs/measuring.md --block repeat
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints how far the latency ratios of two runs agree, and puts the table into a document."""
    parser = Parser(PROG, "Hold two complete runs of one comparison against each other.", _EPILOG)
    parser.add_argument("folders", nargs=2, type=Path, metavar="FOLDER", help="folders of results")
    parser.add_argument("--document", type=Path, metavar="FILE.md", help="put the table into this document")
    parser.add_argument("--block", default="repeat", metavar="NAME", help="name of the document's block")
    parsed = parser.parse(arguments)
    found = repeats(*(records.load(folder).records for folder in parsed.folders))
    if not found:
        folders = ", ".join(map(str, parsed.folders))
        raise UsageError(f"folders: expected two runs that timed the same trials, got {folders}")
    told = sentences(found)
    print(*told, sep="\n")
    if parsed.document is not None:
        if not parsed.document.is_file():
            raise UsageError(f"document: expected an existing file, got {str(parsed.document)!r}")
        table = repeat_table(found)
        notes = [f"- {line}" for line in (*told, *table.legend)]
        block = "\n".join([*notes, "", to_markdown(table)])
        text = parsed.document.read_text(encoding="utf-8")
        parsed.document.write_text(report.replace_block(text, parsed.block, block), encoding="utf-8")
    return 0
