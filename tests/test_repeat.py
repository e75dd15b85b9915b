"""Two runs side by side, and the sentence and table that come of them."""

from __future__ import annotations

import pytest
from record_factory import accuracy_record, cost_record

from attnbench.cli import repeatability
from attnbench.errors import UsageError
from attnbench.records import RecordWriter
from attnbench.report.repeat import repeat_table, repeats, sentences
from attnbench.report.retrained import differing, retrained, retrained_table, sentence


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


def test_sizes_of_one_operator_are_rows_of_their_own() -> None:
    def sized(**heights: float) -> list[dict[str, object]]:
        return [dict(run(ema=factor)[1], height=int(name[1:])) for name, factor in heights.items()]

    # the largest size of the second run is missing: no other may stand in for it
    (found,) = repeats(sized(h33=1.0, h65=2.0, h97=4.0), sized(h65=2.0, h33=1.0))
    assert list(found.pairs) == ["EMA, 33×65", "EMA, 65×65"]
    assert [first.median for first, _ in found.pairs.values()] == pytest.approx([1.04, 2.08])
    assert found.overlapping == 1.0


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
    with pytest.raises(UsageError, match="expected two runs that timed or trained the same trials"):
        repeatability.main([str(tmp_path), str(tmp_path)])


def trained(changes: dict[tuple[str, int], float], **fields: object) -> list[dict[str, object]]:
    return [accuracy_record(name, seed, miou=miou, **fields) for (name, seed), miou in changes.items()]


def test_scores_of_one_seed_are_held_against_each_other() -> None:
    first = trained({("ema", 0): 0.50, ("ema", 1): 0.52, ("conv3x3", 0): 0.40, ("non_local", 0): 0.7})
    second = trained({("ema", 0): 0.51, ("ema", 1): 0.44, ("conv3x3", 0): 0.401}, environment="0" * 16)
    second += trained({("non_local", 0): 0.1, ("ema", 2): 0.9})
    second += [accuracy_record("ema", 3, status="error", reason="it broke")]
    found = retrained(first, second, without=["non_local"])
    assert [(item.title, item.seeds) for item in found] == [("EMA", (0, 1)), ("Conv 3x3", (0,))]
    assert found[0].differences == pytest.approx([1.0, -8.0])
    assert sentence(found) == (
        "Scores: of 3 networks that were trained twice with one seed, half differ by less than 1.00 points of mIoU, "
        "nine in ten by less than 6.6, and one (EMA, seed 1) by 8.0."
    )
    rows = [[cell.text for cell in row] for row in retrained_table(found).rows]
    assert rows == [["EMA", "51.0", "47.5", "+1.0, -8.0"], ["Conv 3x3", "40.0", "40.1", "+0.1"]]


def test_runs_may_differ_in_settings_that_are_named() -> None:
    first = trained({("ema", 0): 0.50}, **{"recipe.amp": "bfloat16"})
    second = trained({("ema", 0): 0.51}, **{"recipe.amp": "off"})
    assert retrained(first, second) == []
    found = retrained(first, second, ignoring=["recipe.amp"])
    assert found[0].differences == pytest.approx([1.0])
    assert "with one seed (recipe.amp bfloat16, then off), half" in sentence(
        found, differing(first, second, ["recipe.amp"])
    )


@pytest.mark.parametrize("name", ["amp", "recipe.power", "recipe.absent", "operator"])
def test_what_is_no_setting_or_does_not_differ_is_refused(name: str) -> None:
    records = trained({("ema", 0): 0.50}, **{"recipe.amp": "bfloat16"})
    with pytest.raises(UsageError, match=f"ignoring: expected settings in which the runs differ.*{name}"):
        differing(records, records, [name])


def test_command_tells_scores_too(tmp_path, capsys) -> None:
    for name in "ab":
        with RecordWriter(tmp_path / name) as writer:
            writer.write(accuracy_record("ema"))
    document = tmp_path / "page.md"
    document.write_text("<!-- repeat:begin -->\n<!-- repeat:end -->\n", encoding="utf-8")
    assert repeatability.main([str(tmp_path / "a"), str(tmp_path / "b"), "--document", str(document)]) == 0
    assert "of 1 networks" in capsys.readouterr().out and "| EMA" in document.read_text(encoding="utf-8")
