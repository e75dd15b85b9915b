"""Tables in each output format: Markdown, LaTeX, a terminal, and the block of the README."""

from __future__ import annotations

import io
import re

import pytest
import rich.console
from record_factory import ENVIRONMENT, ENVIRONMENTS, full_run, small_run

from attnbench import report
from attnbench.errors import UsageError
from attnbench.records import Record
from attnbench.report.frames import Frame
from attnbench.report.render import to_latex, to_markdown
from attnbench.report.tables import comparison_table


def only_frame(records: list[Record]) -> Frame:
    (frame,) = report.comparison_frames(records, ENVIRONMENTS)
    return frame


def test_latex_compiles_by_its_structure() -> None:
    text = to_latex(comparison_table(only_frame(small_run())))
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 1
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {len(columns[1]) - 1}
    assert text.isascii()


def test_terminal_table_fits_a_hundred_and_ten_columns() -> None:
    records = full_run(sizes=(97,))
    console = rich.console.Console(width=110, file=io.StringIO(), record=True)
    console.print(report.render_terminal(only_frame(records)))
    text = console.export_text()
    assert all(len(line.rstrip()) <= 110 for line in text.splitlines())
    row = next(line for line in text.splitlines() if "Non-local (fused)" in line)
    assert "72.0 ± 1.0‡" in row
    assert "Example CPU" in text
    assert "multiply-accumulates" in text
    assert "OOM" in text
    assert "out of memory: tried to allocate" in " ".join(text.split())


def test_latex_explains_no_column_that_it_leaves_out() -> None:
    text = to_latex(comparison_table(only_frame(small_run())))
    assert "Gain" not in text and "Rank" not in text and "MACs: multiply-accumulates" in text


def test_markdown_rows_are_aligned() -> None:
    text = to_markdown(comparison_table(only_frame(small_run())))
    widths = {len(line) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_readme_block_names_where_the_figures_come_from() -> None:
    block = report.readme_block(full_run(sizes=(33, 65)), ENVIRONMENTS, command="make compare")
    assert "65×65" in block
    for fact in ("Example CPU", ENVIRONMENT, "2026-01-02", "aaaaaaaaaa", "make compare", "Non-local"):
        assert fact in block


def test_readme_block_of_nothing_says_so() -> None:
    assert "nothing has been measured" in report.readme_block([], {})


def test_a_section_of_the_report_can_stand_in_a_document() -> None:
    sweep = full_run(sizes=(17, 33, 65))
    block = report.section_block(sweep, ENVIRONMENTS, "Growth", command="make compare")
    assert "In positions N = H" in block and "Non-local" in block and "make compare" in block
    with pytest.raises(UsageError, match=r"section: expected one of 'Comparison', .*'Growth'.*, got 'Grwth'"):
        report.section_block(sweep, ENVIRONMENTS, "Grwth", command="make compare")


def test_replace_block_replaces_between_its_markers_alone() -> None:
    text = "a\n<!-- results:begin -->\nold\n<!-- results:end -->\nb\n"
    new = report.replace_block(text, "results", "new")
    assert new == "a\n<!-- results:begin -->\nnew\n<!-- results:end -->\nb\n"
    assert report.replace_block(new, "results", "new") == new


@pytest.mark.parametrize("text", ["", "<!-- x:begin -->", "<!-- x:end --><!-- x:begin -->"])
def test_replace_block_refuses_text_without_markers(text: str) -> None:
    with pytest.raises(UsageError, match="expected <!-- x:begin -->"):
        report.replace_block(text, "x", "new")
