"""Tables inside a document, between markers: what README and docs show of the records."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.errors import UsageError
from attnbench.records import Record
from attnbench.report.facts import BETWEEN, Environments, commits, dates, machine
from attnbench.report.frames import Frame, arrange
from attnbench.report.render import legend, to_markdown
from attnbench.report.sections import MOST_TABLES, all_sections
from attnbench.report.tables import Table, accuracy_table, brief_table


def readme_block(records: Sequence[Record], environments: Environments, *, command: str = "make compare") -> str:
    """The comparison with the most rows, and a sentence on where it comes from, for the README.

    The operator level comes before the others, and the larger map before the smaller; accuracy that was pooled over
    machines, which no cost can stand beside, before all.
    """
    arranged = arrange(records, environments)
    pooled = [frame for frame in arranged.scored if BETWEEN in frame.setting["environment"]]
    compared = pooled or arranged.compared or arranged.scored
    if not compared:
        return "No results yet: nothing has been measured."

    def worth(frame: Frame) -> tuple[bool, bool, bool, int, int]:
        cost = frame.cost
        return (
            not cost.get("predicted"),
            cost.get("level") == "operator",
            bool(frame.accuracy),
            len(frame.table),
            cost.get("height", 0) * cost.get("width", 0),
        )

    frame = max(compared, key=worth)
    table = brief_table(frame) if frame.cost else accuracy_table(frame)
    return _block([table], records, environments, frame, command)


def section_block(records: Sequence[Record], environments: Environments, heading: str, *, command: str) -> str:
    """The tables of one section of the report, and a sentence on where they come from, for a document.

    Raises:
        UsageError: if the report of these records has no section of that heading.
    """
    arranged = arrange(records, environments)
    compared, scored = arranged.compared[:MOST_TABLES], arranged.scored[:MOST_TABLES]
    sections = dict(all_sections(compared, scored))
    if heading not in sections:
        raise UsageError(f"section: expected one of {', '.join(map(repr, sections))}, got {heading!r}")
    # a heading that scores alone have is that of scores, whatever was measured beside them
    frames = scored if heading in dict(all_sections((), scored)) else compared
    return _block(sections[heading], records, environments, frames[0], command)


def _block(
    tables: Sequence[Table], records: Sequence[Record], environments: Environments, frame: Frame, command: str
) -> str:
    key = frame.setting["environment"]
    same = [record for record in records if record["environment"] == key]
    threads = None if frame.cost else frame.accuracy.get("threads")
    known = {name: machine(environments.get(name, {}), threads) for name in key.split(BETWEEN)}
    unknown = "a machine without a recorded environment"
    where = [f"{told or unknown} (environment `{name}`)" for name, told in known.items()]
    source = (
        f"Measured on {' and '.join(where)} on {dates(same)} with commit {', '.join(commits(same))}, "
        f"protocol {frame.setting['protocol']}: `{command}`."
    )
    texts = [f"**{table.title}**\n\n{to_markdown(table)}" for table in tables]
    return "\n".join([*texts, f"{legend(tables)}\n\n{source}"])


def replace_block(text: str, name: str, block: str) -> str:
    r"""`text` with what stands between `<!-- name:begin -->` and `<!-- name:end -->` replaced by `block`.

    Raises:
        UsageError: unless each marker occurs once, in this order.

    Example:
        >>> replace_block("<!-- x:begin -->old<!-- x:end -->", "x", "new")
        '<!-- x:begin -->\nnew\n<!-- x:end -->'

    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UsageError(
            f"markers: expected {begin} and {end} once each, in this order, "
            f"got {text.count(begin)} and {text.count(end)}"
        )
    return f"{text[: text.index(begin)]}{begin}\n{block}\n{text[text.index(end) :]}"
