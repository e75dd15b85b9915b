"""The table of memory, and the figure of live bytes."""

import io

import pandas as pd
import pytest
from PIL import Image
from record_factory import ENVIRONMENTS, cost_record
from test_compare import complaint

from attnbench import report
from attnbench.cli import memory_curve
from attnbench.report.memory_curves import Curve, curve_sheet, memory_curves
from attnbench.report.memory_tables import memory_table

MIB = 2**20
FIGURES = {"peak_bytes": 8 * MIB, "largest_bytes": 3 * MIB, "largest_by": "aten::bmm"}


def frame_of(*records):
    (frame,) = report.comparison_frames(records, ENVIRONMENTS)
    return frame


def texts(table, header):
    place = [column.header for column in table.columns].index(header)
    return {row[0].text: row[place].text for row in table.rows}


def test_saved_and_largest():
    records = [cost_record(mode="forward", **FIGURES), cost_record(mode="training", saved_bytes=2 * MIB, **FIGURES)]
    table = memory_table(frame_of(*records))
    assert texts(table, "Saved (MiB)") == {"EMA": "2.00"}
    assert texts(table, "Saved (% of peak)") == {"EMA": "25"}
    assert texts(table, "Largest fwd (MiB)") == texts(table, "Largest train (MiB)") == {"EMA": "3.00 aten::bmm"}
    assert not any("predicted" in column.header for column in table.columns)


def test_failures_have_their_reason_and_old_records_no_table(tmp_path):
    failed = cost_record("dual", status="out_of_memory", reason="full")
    table = memory_table(frame_of(cost_record(**FIGURES), failed))
    assert texts(table, "Largest fwd (MiB)")["Dual attention"] == "out of memory"
    assert memory_table(frame_of(cost_record(), failed)).rows == ()
    report.write_report([cost_record()], ENVIRONMENTS, tmp_path)
    assert "## Memory" not in (tmp_path / "comparison.md").read_text()
    report.write_report([cost_record(**FIGURES)], ENVIRONMENTS, tmp_path)
    assert "## Memory" in (tmp_path / "comparison.md").read_text()


def test_deviation_of_the_allocator_is_stated():
    record = cost_record(device="cuda", predicted_peak_bytes=10 * MIB, **FIGURES)
    frame = frame_of(record)
    assert frame.rows.iloc[0]["peak_deviation_forward"] == pytest.approx(-0.2)
    assert frame.rows.iloc[0]["predicted_peak_mib_forward"] == 10
    table = memory_table(frame)
    assert texts(table, "Allocator / predicted fwd (%)") == {"EMA": "-20.0"}
    assert any("allocator's peak exceeds" in line for line in table.legend)


POINTS = [("aten::add", MIB, False), ("aten::exp", 3 * MIB, False), ("aten::mul", 2 * MIB, True)]


def test_sheet_of_curves():
    sheet = curve_sheet([Curve("A", POINTS, MIB), Curve("B", POINTS[:1], None)])
    assert sheet["operator"].tolist() == ["A", "A", "A", "B"]
    assert sheet["step"].tolist() == [1, 2, 3, 1]
    assert sheet["live_bytes"].max() == 3 * MIB


def test_panels_mark_the_turn_and_the_peak():
    plot = memory_curves([Curve("A", POINTS, MIB), Curve("B", POINTS[:2], None), Curve("C", [], None)], "x", "setting")
    training, forward, empty = plot.figure.axes
    assert training.get_title(loc="left") == "A: 1.00 MiB saved for backward\npeak 3.00 MiB in exp"
    assert [line.get_xdata()[0] for line in training.lines if line.get_linestyle() == "--"] == [2.5]
    assert not [line for line in forward.lines if line.get_linestyle() == "--"]
    assert [line.get_xydata().tolist() for line in forward.lines if line.get_marker() == "o"] == [[[2.0, 3.0]]]
    assert empty.get_title(loc="left") == "C"


def test_headings_keep_inside_their_panels():
    name = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
    curves = [Curve("Object-contextual (fused)", [(name, 12345 * MIB, False)], 12345 * MIB)] * 2
    figure = memory_curves(curves, "x", "setting").figure
    figure.draw_without_rendering()
    boxes = [axes._left_title.get_window_extent() for axes in figure.axes]
    assert boxes[0].x1 < boxes[1].x0
    assert boxes[1].x1 <= figure.bbox.x1


def test_script_writes_figure_and_sheet(tmp_path, capsys):
    options = ["--operators", "non_local", "--size", "5x7", "--channels", "64", "--output", str(tmp_path)]
    assert memory_curve.main(options) == 0
    stem = "memory-curve-non-local-operator-1x64x5x7-float32-training"
    assert {path.name for path in tmp_path.iterdir()} == {f"{stem}.{suffix}" for suffix in ("png", "pdf", "csv")}
    assert "5×7 map, 64 channels" in " ".join(capsys.readouterr().out.split())
    sheet = pd.read_csv(tmp_path / f"{stem}.csv")
    assert set(sheet["operator"]) == {"Non-local", "Non-local (fused)"}
    assert sheet["backward"].any() and not sheet["backward"].all()
    assert Image.open(io.BytesIO((tmp_path / f"{stem}.png").read_bytes())).width > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--operators: expected names"),
        (["--operators", "non_locl"], "did you mean 'non_local'"),
        (["--operators", "conv1x1", "--level", "core"], "names no core"),
        (["--operators", "conv1x1", "--dtype", "float23"], "unknown value 'float23'"),
        (["--operators", "conv1x1", "--size", "5", "--output", "/dev/null/x"], "expected one that can be written"),
    ],
)
def test_script_says_what_it_expected(capsys, arguments, words):
    assert words in complaint(capsys, arguments, memory_curve)
