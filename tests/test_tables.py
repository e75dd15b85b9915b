"""What the tables say of records: joining, intervals, failures, the best, rounding, and every output format."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from record_factory import (
    CLASSES,
    ENVIRONMENTS,
    OPERATORS,
    accuracy_record,
    cost_record,
    full_run,
    small_run,
)

from attnbench import report
from attnbench.records import PROTOCOL, Record
from attnbench.report.frames import Frame, arrange, sheet
from attnbench.report.render import to_latex, to_markdown
from attnbench.report.tables import Table, accuracy_table, brief_table, class_table, comparison_table
from attnbench.report.wording import significant

ROOT = Path(__file__).parents[1]


def only_frame(records: list[Record]) -> Frame:
    frames = report.comparison_frames(records, ENVIRONMENTS)
    assert len(frames) == 1
    return frames[0]


def cell(table: Table, row: str, key: str):
    column = [item.key for item in table.columns].index(key)
    return next(cells[column] for cells in table.rows if cells[0].text == row)


def test_importing_the_report_does_not_import_torch() -> None:
    code = "import sys, attnbench.report; assert 'torch' not in sys.modules, 'torch'"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_row_holds_the_figures_of_its_records() -> None:
    samples, control = [2.0, 4.0, 6.0, 8.0, 10.0, 12.0], [1.0, 2.0, 2.0, 4.0, 5.0, 6.0]
    fields = {
        "samples_ms": samples,
        "control_samples_ms": control,
        "macs": 1_500_000_000,
        "peak_bytes": 3 * 2**20,
    }
    row = only_frame([cost_record("ema", **fields)]).rows.iloc[0]
    assert row["latency_ms_forward"] == 7.0
    assert (row["latency_low_ms_forward"], row["latency_high_ms_forward"]) == (2.0, 12.0)
    assert row["ratio_forward"] == 2.0
    assert row["peak_mib_forward"] == 3.0
    assert row["flops"] == 3_000_000_000
    assert row["status_training"] == "not measured"


def test_controls_come_first_then_miou_descends() -> None:
    rows = only_frame(small_run()).rows
    assert list(rows["operator"]) == ["identity", "conv3x3", "non_local", "ema"]


def test_accuracy_is_mean_and_sample_deviation_over_seeds() -> None:
    records = [accuracy_record("ema", seed, miou=miou) for seed, miou in enumerate((0.60, 0.70, 0.80))]
    table = accuracy_table(report.accuracy_frames(records, ENVIRONMENTS)[0])
    assert cell(table, "EMA", "miou").text == "70.0 ± 10.0 (3)"


def test_settings_of_one_title_are_told_apart_by_what_differs():
    records = [
        accuracy_record("ema"),
        accuracy_record("ema", **{"recipe.class_balance": "enet"}),
        accuracy_record("ema", eval_split="test", **{"recipe.class_balance": "enet"}),
    ]
    titles = [accuracy_table(frame).title for frame in report.accuracy_frames(records, ENVIRONMENTS)]
    alone = accuracy_table(report.accuracy_frames(records[:1], ENVIRONMENTS)[0]).title
    split = records[0]["eval_split"]
    assert sorted(titles) == sorted(
        [
            f"{alone}, eval_split {split}",
            f"{alone}, eval_split {split}, recipe.class_balance enet",
            f"{alone}, eval_split test, recipe.class_balance enet",
        ]
    )


def test_gain_is_paired_by_seed() -> None:
    records = [accuracy_record("conv3x3", seed, miou=0.1 * seed) for seed in (1, 2, 3)]
    records += [accuracy_record("ema", seed, miou=0.1 * seed + gain) for seed, gain in ((2, 0.02), (3, 0.04), (4, 0.3))]
    table = accuracy_table(report.accuracy_frames(records, ENVIRONMENTS)[0])
    assert cell(table, "EMA", "gain").text == "+3.0 ± 1.4 (2)"
    assert cell(table, "Conv 3x3", "gain").text == "–"


def test_fused_row_has_the_accuracy_of_the_reference_and_says_so() -> None:
    records = [*small_run(), cost_record("non_local", implementation="fused")]
    table = comparison_table(only_frame(records))
    assert cell(table, "Non-local (fused)", "miou").text == cell(table, "Non-local", "miou").text + "‡"
    assert any("‡" in line for line in table.legend)


def test_fused_row_that_was_trained_has_its_own_accuracy() -> None:
    records = [*small_run(), cost_record("non_local", implementation="fused")]
    records.append(accuracy_record("non_local", 0, implementation="fused", miou=0.5))
    assert cell(comparison_table(only_frame(records)), "Non-local (fused)", "miou").text == "50.0 (1)"


def test_rows_of_other_hyper_parameters_do_not_share_accuracy() -> None:
    records = [*small_run(), cost_record("ema", settings='{"num_bases": 32}')]
    assert cell(comparison_table(only_frame(records)), "EMA (num_bases = 32)", "miou").text == "–"


@pytest.mark.parametrize("field", ["environment", "device", "level", "height", "batch", "dtype", "channels"])
def test_another_setting_is_another_table(field: str) -> None:
    other = {"environment": "f" * 16, "device": "cuda", "level": "core", "height": 33, "batch": 2}
    other |= {"dtype": "bfloat16", "channels": 256}
    records = [cost_record("ema"), cost_record("ema", **{field: other[field]})]
    frames = report.comparison_frames(records, ENVIRONMENTS)
    assert [len(frame.rows) for frame in frames] == [1, 1]


def test_another_protocol_is_another_table() -> None:
    records = [cost_record("ema"), {**cost_record("ema"), "protocol": PROTOCOL + 1, "identity": "b" * 24}]
    assert len(report.comparison_frames(records, ENVIRONMENTS)) == 2


def test_accuracy_of_another_machine_is_not_joined() -> None:
    records = [cost_record("ema"), accuracy_record("ema", environment="f" * 16)]
    frame = only_frame(records)
    assert "miou" not in frame.rows
    assert [bool(item.cost) for item in arrange(records, ENVIRONMENTS).all] == [True, False]


@pytest.mark.parametrize("status", ["out_of_memory", "timeout", "crashed", "nonconforming", "unsupported", "error"])
def test_failed_trial_is_a_row_with_status_and_reason(status: str) -> None:
    records = [*small_run(), cost_record("dual", "forward", status=status, reason="it went wrong")]
    table = comparison_table(only_frame(records))
    assert cell(table, "Dual attention", "latency_ms_forward").text == status.replace("_", " ")
    assert cell(table, "Dual attention", "macs").text == status.replace("_", " ")
    assert cell(table, "Dual attention", "latency_ms_training").text == "–"
    assert any("it went wrong" in note for note in table.notes)
    assert "it went wrong" in to_markdown(table)


def test_failed_training_run_is_named_and_does_not_count() -> None:
    records = [
        accuracy_record("ema", 0, miou=0.7),
        accuracy_record("ema", 1, status="error", reason="loss is NaN"),
    ]
    table = accuracy_table(report.accuracy_frames(records, ENVIRONMENTS)[0])
    assert cell(table, "EMA", "miou").text == "70.0 (1)"
    assert any("loss is NaN" in note for note in table.notes)


def test_operator_whose_every_training_run_failed_keeps_its_row() -> None:
    records = [accuracy_record("conv3x3"), accuracy_record("ema", status="timeout", reason="no sign of life")]
    table = accuracy_table(report.accuracy_frames(records, ENVIRONMENTS)[0])
    assert cell(table, "EMA", "miou").text == "timeout"


def test_wide_spread_is_marked() -> None:
    steady, shaky = [10.0, 10.1] * 4, [10.0, 10.1, 14.0, 15.0] * 2
    control = [1.0] * 8
    records = [
        cost_record("ema", samples_ms=steady, control_samples_ms=control),
        cost_record("dual", samples_ms=shaky, control_samples_ms=control),
    ]
    table = comparison_table(only_frame(records))
    assert "†" not in cell(table, "EMA", "latency_ms_forward").text
    assert cell(table, "Dual attention", "latency_ms_forward").text.endswith("†")


def test_best_is_bold_and_never_a_control() -> None:
    table = comparison_table(only_frame(small_run()))
    assert cell(table, "EMA", "latency_ms_forward").best
    assert not cell(table, "Identity", "latency_ms_forward").best
    assert cell(table, "Non-local", "miou").best
    assert "**72.0 ± 1.0 (3)**" in to_markdown(table)
    assert r"\bfseries 72.0" in to_latex(table)


def test_nothing_is_best_where_all_are_equal() -> None:
    records = [cost_record(name, params=1000) for name in ("ema", "non_local")]
    table = comparison_table(only_frame(records))
    assert not cell(table, "EMA", "params").best
    assert cell(table, "EMA", "latency_ms_forward").best


def test_lower_bound_of_macs_is_shown_as_one() -> None:
    table = comparison_table(only_frame([cost_record("ema", lower_bound=True, uncounted=["aten::fft x2"])]))
    assert cell(table, "EMA", "macs").text.startswith("≥ ")
    assert any("aten::fft x2" in note for note in table.notes)


def test_later_source_replaces_the_earlier_and_is_counted() -> None:
    new = {"source": "cafe", "started": "2026-02-02T03:04:05.000000Z"}
    records = [cost_record("ema"), cost_record("ema", "training"), cost_record("ema", params=77, **new)]
    row = only_frame(records).rows.iloc[0]
    assert row["params"] == 77
    assert row["status_training"] == "not measured"
    assert arrange(records, ENVIRONMENTS).replaced == 2


def test_local_ceiling_is_a_row_of_the_accuracy_table() -> None:
    table = accuracy_table(report.accuracy_frames([accuracy_record("ema", local_ceiling=0.5)], ENVIRONMENTS)[0])
    assert [row[0].text for row in table.rows] == ["EMA", "Local ceiling"]
    assert cell(table, "Local ceiling", "miou").text == "50.0"


def test_local_ceiling_stands_beside_the_scores_wherever_they_are() -> None:
    frame = only_frame([cost_record("ema"), accuracy_record("ema", local_ceiling=0.5)])
    for table in (comparison_table(frame), brief_table(frame)):
        assert [row[0].text for row in table.rows] == ["EMA", "Local ceiling"]
        assert cell(table, "Local ceiling", "miou").text == "50.0"
        assert cell(table, "Local ceiling", "params").text == "–"
        assert table.legend[-1].startswith("Local ceiling: ")
    bare = accuracy_record("ema")
    del bare["local_ceiling"]
    assert [row[0].text for row in brief_table(only_frame([cost_record("ema"), bare])).rows] == ["EMA"]


def test_the_training_loss_is_that_of_the_end() -> None:
    losses = [[9.0] * 18 + [1.0, 2.0], [9.0] * 18 + [3.0, 4.0]]
    records = [accuracy_record("ema", seed, loss=loss) for seed, loss in enumerate(losses)]
    table = accuracy_table(report.accuracy_frames([*records, accuracy_record("dual", loss=[])], ENVIRONMENTS)[0])
    assert cell(table, "EMA", "train_loss").text == "2.50"
    assert cell(table, "Dual attention", "train_loss").text == "–"
    assert any(line.startswith("Training loss: ") for line in table.legend)


def test_accuracy_table_states_its_setting_without_the_place_of_files() -> None:
    fields = {"network.backbone_weights": "some/folder/weights.pth", "weights_hash": "abc123"}
    table = accuracy_table(report.accuracy_frames([accuracy_record("ema", **fields)], ENVIRONMENTS)[0])
    assert "recipe.iterations 300" in table.notes[-1]
    assert "abc123" in table.notes[-1]
    assert "some/folder" not in to_markdown(table)


def test_network_level_states_its_network() -> None:
    fields = {"level": "network", "network.backbone": "resnet50", "network.head_channels": 256}
    table = comparison_table(only_frame([cost_record("ema", **fields)]))
    assert "resnet50" in table.title
    assert "network.head_channels 256" in table.notes[-1]


def test_class_table_averages_over_seeds_and_leaves_absent_classes_open() -> None:
    records = [
        accuracy_record("ema", 0, iou=[0.4, None, None]),
        accuracy_record("ema", 1, iou=[0.6, 0.3, None]),
    ]
    table = class_table(report.accuracy_frames(records, ENVIRONMENTS)[0])
    shown = {column.header: item.text for column, item in zip(table.columns, table.rows[0], strict=True)}
    assert shown["sky (%)"] == "50.0"
    assert shown["road (%)"] == "30.0"
    assert "sign (%)" not in shown


def test_sheet_round_trips_and_holds_every_row() -> None:
    records = full_run(sizes=(33, 65))
    columns, values = sheet(arrange(records, ENVIRONMENTS).all)
    rows = [dict(zip(columns, ["" if value is None else str(value) for value in row], strict=True)) for row in values]
    assert len(rows) == 2 * (len(OPERATORS) + 1)
    ema = next(row for row in rows if row["operator"] == "ema" and row["height"] == "65")
    assert int(ema["macs"]) == cost_record("ema")["macs"]
    assert ema["seeds"] == "3"
    assert list(json.loads(ema["iou"])) == list(CLASSES)


def test_glossary_explains_every_field_and_every_column() -> None:
    glossary = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    schema = json.loads((ROOT / "attnbench" / "records.schema.json").read_text(encoding="utf-8"))
    columns = set(sheet(arrange(full_run(sizes=(65,)), ENVIRONMENTS).all)[0]) | set(schema["properties"])
    columns -= {name for name in columns if name.startswith(("network.", "recipe."))}
    explained = set(re.findall(r"`([a-z0-9_.<>]+)`", glossary))
    explained |= {name.replace("<mode>", mode) for name in explained for mode in ("forward", "training")}
    assert not columns - explained


@pytest.mark.parametrize(
    ("value", "text"), [(0.99951, "1.00"), (99.96, "100"), (0.00012345, "0.000123"), (65432.1, "65432")]
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_brief_tables_hold_what_a_reader_chooses_by() -> None:
    frame = report.comparison_frames(full_run(), ENVIRONMENTS)[0]
    whole, brief = comparison_table(frame), brief_table(frame)
    headers = [column.header for column in brief.columns]
    assert headers[0] == "Operator"
    assert "mIoU (%)" in headers
    assert "fwd / conv3x3" in headers
    assert not {"FLOPs (G)", "Latency fwd (ms)", "mAcc (%)"} & set(headers)
    assert any("(fused)" in row[0].text for row in whole.rows)
    assert not any("(fused)" in row[0].text for row in brief.rows)
    by_name = {row[0].text: row for row in whole.rows}
    for row in brief.rows:
        assert row[1].text == by_name[row[0].text][1].text


def test_operators_whose_intervals_overlap_share_their_ranks() -> None:
    spread = {"ema": 1.0, "dual": 1.01, "criss_cross": 2.0, "non_local": 9.0}
    records = [
        cost_record(name, samples_ms=[factor * (1 + 0.01 * step) for step in range(9)], control_samples_ms=[1.0] * 9)
        for name, factor in spread.items()
    ]
    records.append(cost_record("global_context", samples_ms=[0.1] * 3, control_samples_ms=[1.0] * 3))
    table = comparison_table(only_frame(records))
    ranks = {
        row: cell(table, row, "rank_forward").text for row in ("EMA", "Dual attention", "Criss-cross", "Non-local")
    }
    assert ranks == {"EMA": "1–2", "Dual attention": "1–2", "Criss-cross": "3", "Non-local": "4"}
    assert cell(table, "Global context", "rank_forward").text == "–"
