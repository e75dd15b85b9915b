"""Two runs side by side, and the sentence and table that come of them."""

from __future__ import annotations

import pytest
from record_factory import cost_record

from attnbench.cli import repeatability
from attnbench.errors import UsageError
from attnbench.records import RecordWriter
from attnbench.report.repeat import repeat_table, repeats, sentences


def run(**factors: float) -> list[dict[str, object]]:
    """Records whose ratios spread from 1 to 1.08 times a factor."""
    return [
        cost_record(name, samples_ms=[factor * (1 + 0.01 * step) for step in range(9)], control_samples_ms=[1.0] * 9)
        for name, factor in {"conv3x3": 1.0, **factors}.items()
    ]


def test_intervals_of_two_runs_overlap_or_not() -> None:
    (found,) = repeats(run(ema=1.0, non_local=2.0), run(ema=1.05, non_local=3.0))
    assert (found.mode, set(found.pairs)) == ("forward", {"EMA", "Non-local"})
    assert found.overlapping == 0.5
    # nine values: the second to the eighth enclose the median with 95 %
    assert found.width == pytest.approx(0.06 / 1.04)
    (told,) = sentences([found])
    assert told.startswith("Forward: the 95 % intervals of the two runs overlap for 50 % of 2 rows;")
    assert told.endswith("median width is 6 % of the ratio.")


def test_table_marks_what_does_not_overlap() -> None:
    table = repeat_table(repeats(run(ema=1.0, non_local=2.0), run(ema=1.05, non_local=3.0)))
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows["EMA"] == ["1.04 [1.01, 1.07]", "1.09 [1.06, 1.12]"]
    assert rows["Non-local"][1].endswith("×")


def test_command_writes_the_block(tmp_path, capsys) -> None:
    for name, records in (("a", run(ema=1.0)), ("b", run(ema=1.01))):
        with RecordWriter(tmp_path / name) as writer:
            for record in records:
                writer.write(record)
    document = tmp_path / "page.md"
    document.write_text("x\n<!-- repeat:begin -->\n<!-- repeat:end -->\ny\n", encoding="utf-8")
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert repeatability.main([*folders, "--document", str(document)]) == 0
    assert "100 % of 1 rows" in capsys.readouterr().out
    text = document.read_text(encoding="utf-8")
    assert text.startswith("x\n") and text.endswith("y\n") and "| EMA" in text


def test_runs_without_a_common_trial_are_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="expected two runs that timed the same trials"):
        repeatability.main([str(tmp_path), str(tmp_path)])
