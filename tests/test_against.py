"""A run held against an earlier one."""

import re

import pytest
from record_factory import ENVIRONMENT, ENVIRONMENTS, accuracy_record, cost_record, full_run

from attnbench.report import Margins, compare, render_changes, write_report
from attnbench.statistics import mean_interval

ELSEWHERE = "f" * 16
BOTH = {**ENVIRONMENTS, ELSEWHERE: {**ENVIRONMENTS[ENVIRONMENT], "cpu": {"model": "Other CPU", "available_cores": 8}}}


def verdicts(now, then, margins=None):
    return {change.measure: change.verdict for change in compare(now, then, BOTH, margins).changes}


def changed(record, **fields):
    return {**record, "started": "2026-02-02T00:00:00.0Z", "identity": "a" * 24, "source": "beef", **fields}


def test_a_run_against_itself_is_the_same_throughout():
    comparison = compare(full_run(), full_run(), ENVIRONMENTS)
    assert {change.verdict for change in comparison.changes} == {"same"}
    assert comparison.regressions == []
    assert comparison.table("x").rows == []


@pytest.mark.parametrize(
    ("fields", "measure", "verdict"),
    [
        ({"macs": cost_record()["macs"] + 1}, "MACs", "worse"),
        ({"macs": cost_record()["macs"] - 1}, "MACs", "better"),
        ({"params": cost_record()["params"] + 1}, "parameters", "worse"),
        ({"peak_bytes": cost_record()["peak_bytes"] + 1}, "peak bytes", "worse"),
        ({"samples_ms": [2 * value for value in cost_record()["samples_ms"]]}, "latency / conv3x3", "worse"),
        ({"samples_ms": [value / 2 for value in cost_record()["samples_ms"]]}, "latency / conv3x3", "better"),
        ({"samples_ms": [1.05 * value for value in cost_record()["samples_ms"]]}, "latency / conv3x3", "same"),
    ],
)
def test_each_measure_has_its_verdict(fields, measure, verdict):
    found = verdicts([changed(cost_record(), **fields)], [cost_record()])
    assert found.pop(measure) == verdict
    assert set(found.values()) == {"same"}


def test_a_slow_machine_slows_the_control_too_and_is_no_regression():
    slow = {name: [3 * value for value in cost_record()[name]] for name in ("samples_ms", "control_samples_ms")}
    assert verdicts([changed(cost_record(), **slow)], [cost_record()])["latency / conv3x3"] == "same"


def test_milliseconds_of_two_machines_are_not_compared():
    double = [1.6 * value for value in cost_record()["samples_ms"]]
    now = changed(cost_record(), environment=ELSEWHERE, samples_ms=double)
    comparison = compare([now], [cost_record()], BOTH)
    latency = next(change for change in comparison.changes if change.measure == "latency / conv3x3")
    assert latency.verdict == "same"
    assert "ms" not in latency.then + latency.now
    assert any("different machines: milliseconds are not compared" in note for note in comparison.notes)
    here = compare([changed(cost_record(), samples_ms=double)], [cost_record()], BOTH)
    assert [change.measure for change in here.regressions] == ["latency / conv3x3"]
    assert "ms" in here.regressions[0].then
    assert verdicts([now], [cost_record()], Margins(elsewhere=0.1))["latency / conv3x3"] == "worse"


def test_machines_that_nobody_knows_are_not_taken_for_one():
    comparison = compare([cost_record()], [cost_record()], {})
    assert any("different machines" in note for note in comparison.notes)


def test_few_samples_decide_nothing():
    few = {"samples_ms": [900.0] * 5, "control_samples_ms": [1.0] * 5}
    assert verdicts([changed(cost_record(), **few)], [cost_record()])["latency / conv3x3"] == "undecided"


def test_margins_are_kept():
    more = changed(cost_record(), peak_bytes=int(1.04 * cost_record()["peak_bytes"]))
    assert verdicts([more], [cost_record()], Margins(memory=0.05))["peak bytes"] == "same"
    assert verdicts([more], [cost_record()], Margins(memory=0.03))["peak bytes"] == "worse"


def test_accuracy_is_paired_by_seed():
    """Seeds differ by a whole point, all of them lose 0.8: together beyond the margin, each alone within the noise."""
    then = [accuracy_record("ema", seed) for seed in range(4)]
    now = [changed(record, miou=record["miou"] - 0.008 - 0.0001 * record["seed"]) for record in then]
    assert verdicts(now, then)["mIoU (%)"] == "worse"
    assert verdicts(now, then, Margins(accuracy=1.0))["mIoU (%)"] == "same"
    assert verdicts(then, now)["mIoU (%)"] == "better"
    assert verdicts(now[:1], then[:1])["mIoU (%)"] == "undecided"
    assert verdicts(now[:1], then)["mIoU (%)"] == "undecided"


def test_a_trial_that_fails_now_is_a_regression_and_one_that_runs_now_is_not():
    failed = changed(cost_record(status="out_of_memory", reason="tried to allocate 4 GiB"))
    assert verdicts([failed], [cost_record()]) == {"status": "worse"}
    assert verdicts([changed(cost_record())], [cost_record(status="timeout", reason="slow")]) == {"status": "better"}


def test_what_only_one_of_them_holds_is_said():
    now, then = [cost_record("ema"), cost_record("dual")], [cost_record("ema"), accuracy_record()]
    comparison = compare(now, then, ENVIRONMENTS)
    assert "1 of 2 trials have no counterpart in the earlier run." in comparison.notes
    assert "1 of 2 trials of the earlier run were not measured in this one." in comparison.notes


def test_the_table_stands_in_the_report_and_on_the_terminal(tmp_path):
    now = [changed(cost_record(), macs=7)]
    table = compare(now, [cost_record()], ENVIRONMENTS).table("Against before")
    write_report(now, ENVIRONMENTS, tmp_path, against=table)
    text = (tmp_path / "comparison.md").read_text()
    assert "## Against an earlier run" in text
    assert "### Against before" in text
    assert re.search(r"\| +MACs +\|", text)
    assert "Against an earlier run" in (tmp_path / "index.html").read_text()
    assert len(render_changes(table).rows) == 1


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.706), (5, 2.776), (31, 2.042), (100, 2.042)])
def test_interval_of_paired_differences(count, quantile):
    values = [float(number % 2) for number in range(count)]
    mean, low, high = mean_interval(values)
    spread = (sum((value - mean) ** 2 for value in values) / (count - 1)) ** 0.5
    assert high - mean == pytest.approx(quantile * spread / count**0.5)
    assert mean - low == pytest.approx(high - mean)
