"""The whole report: its files, its page, and what it says where there is nothing to report."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from record_factory import ENVIRONMENTS, accuracy_record, cost_record, full_run

from attnbench.errors import UsageError
from attnbench.report import Report, terminal_tables, write_report

_VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """Collects what a page refers to, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.rows = 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for key, value in attributes if key in ("src", "href")]
        self.rows += tag == "tr"
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write_report(
        full_run(sizes=(33, 65)),
        ENVIRONMENTS,
        tmp_path_factory.mktemp("report"),
        problems=["line 3: set aside"],
    )


def test_report_names_the_files_that_it_wrote(written: Report) -> None:
    assert sorted(written.folder.iterdir()) == sorted(written.files)
    assert {"comparison.md", "comparison.csv", "comparison.tex", "index.html"} <= {file.name for file in written.files}
    drawn = sorted(file.stem.partition("-")[0] for file in written.files if file.suffix == ".png")
    assert drawn == ["scaling", "scaling", "seeds", "trade", "trade"]
    assert {file.stem for file in written.files if file.suffix == ".png"} == {
        file.stem for file in written.files if file.suffix == ".pdf"
    }


def test_page_needs_nothing_from_elsewhere(written: Report) -> None:
    text = (written.folder / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.references
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)


def test_page_holds_every_row_of_every_table(written: Report) -> None:
    text = (written.folder / "index.html").read_text(encoding="utf-8")
    assert text.count("<td>Criss-cross</td>") == 2 + 1 + 1
    assert "prefers-color-scheme: dark" in text


def test_page_escapes_what_records_say(tmp_path: Path) -> None:
    records = [cost_record("ema", status="error", reason="<script>alert(1)</script>")]
    write_report(records, ENVIRONMENTS, tmp_path)
    assert "<script>alert" not in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in (tmp_path / "comparison.md").read_text(encoding="utf-8")


def test_markdown_states_machine_commit_date_and_protocol(written: Report) -> None:
    text = (written.folder / "comparison.md").read_text(encoding="utf-8")
    for fact in (
        "Example CPU",
        "torch: 2.9.0",
        "threads.intra_op: 2",
        "aaaaaaaaaa",
        "2026-01-02",
        "protocol: 1",
    ):
        assert fact in text
    assert "line 3: set aside" in text
    for figure in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (written.folder / figure).is_file()


def test_terminal_tables_one_for_each_comparison(written: Report) -> None:
    assert len(terminal_tables(written)) == 2
    many = dataclasses.replace(written, frames=written.frames * 5)
    *tables, more = terminal_tables(many)
    assert len(tables) == 8
    assert more == f"2 more tables: {written.folder / 'comparison.md'}"


def test_no_records_give_a_report_that_says_so(tmp_path: Path) -> None:
    report = write_report([], {}, tmp_path / "new" / "folder")
    for name in ("comparison.md", "comparison.tex", "index.html"):
        assert "othing has been measured" in (report.folder / name).read_text(encoding="utf-8")
    assert len((report.folder / "comparison.csv").read_text(encoding="utf-8").splitlines()) == 1
    assert not report.frames


def test_cost_alone_and_accuracy_alone_are_reports(tmp_path: Path) -> None:
    cost = write_report([cost_record("ema"), cost_record("dual")], ENVIRONMENTS, tmp_path / "cost")
    assert any("no accuracy" in reason for reason in cost.skipped)
    accuracy = write_report([accuracy_record("ema")], {}, tmp_path / "accuracy")
    assert "Local ceiling" in (accuracy.folder / "comparison.md").read_text(encoding="utf-8")
    assert "not found" in (accuracy.folder / "index.html").read_text(encoding="utf-8")


def test_all_trials_failed_is_a_report(tmp_path: Path) -> None:
    failed = {"status": "crashed", "reason": "killed"}
    records = [cost_record("ema", **failed), accuracy_record("ema", **failed)]
    write_report(records, ENVIRONMENTS, tmp_path)
    assert "killed" in (tmp_path / "comparison.md").read_text(encoding="utf-8")


def test_plots_of_equal_names_are_kept_apart(tmp_path: Path) -> None:
    records = [
        *full_run(sizes=(33,)),
        *(accuracy_record(name, **{"recipe.iterations": 500}) for name in ("ema", "dual")),
    ]
    report = write_report(records, ENVIRONMENTS, tmp_path)
    names = [file.name for file in report.files]
    assert len(names) == len(set(names))
    assert sum(name.startswith("trade-off") and name.endswith(".png") for name in names) == 2


def test_reports_of_equal_records_are_equal(written: Report, tmp_path: Path) -> None:
    again = write_report(full_run(sizes=(33, 65)), ENVIRONMENTS, tmp_path, problems=["line 3: set aside"])
    for first, second in zip(written.files, again.files, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_folder_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UsageError, match="expected one that can be written"):
        write_report([], {}, blocked / "report")
