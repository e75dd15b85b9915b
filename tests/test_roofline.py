"""The roof of a machine, measured and read; what a report derives from it; its table and figure."""

from __future__ import annotations

import itertools
import json

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from record_factory import ENVIRONMENT, ENVIRONMENTS, OPERATORS, cost_record, small_run

from attnbench import calibration, records, report
from attnbench.cli import report as report_cli
from attnbench.errors import UsageError
from attnbench.machine import rates, read_machine, write_machine
from attnbench.measuring.roofline import measure_machine
from attnbench.report.frames import sheet
from attnbench.report.plots import Plot
from attnbench.report.render import to_latex, to_markdown
from attnbench.report.roofline import Bound, Roof, bound_of, operations_of, roof_of, work_columns
from attnbench.report.roofline_plot import rooflines
from attnbench.report.tables import comparison_table
from attnbench.report.work import has_work, work_table
from attnbench.report.writing import write_report

ROOFLINE = {"matrix_gflops": {"float32": 100.0}, "copy_gb_per_s": 10.0}
ROOFED = {ENVIRONMENT: {**ENVIRONMENTS[ENVIRONMENT], "roofline": ROOFLINE}}
ROOF = Roof(100e9, 10e9)


def work_record(operator="ema", mode="forward", **fields):
    """A record of 1.1 G operations on 20 MB, which the roof takes 11 ms for at 100 GFLOP/s."""
    work = {"macs": 500_000_000, "elementwise": 100_000_000, "unruled": [], "bytes_compulsory": 20_000_000}
    work |= {"bytes_moved": 80_000_000, "samples_ms": [22.0] * 6, "control_samples_ms": [11.0] * 6}
    if mode == "training":
        work |= {"macs_backward": 1_000_000_000, "elementwise_backward": 200_000_000}
    else:
        work |= {"macs_dispatched": 500_000_000}
    return cost_record(operator, mode, **{**work, **fields})


def frame_of(found, environments=ROOFED):
    frames = report.comparison_frames(found, environments)
    assert len(frames) == 1
    return frames[0]


def cell(table, row, key):
    column = [item.key for item in table.columns].index(key)
    return next(cells[column] for cells in table.rows if cells[0].text == row)


@pytest.mark.parametrize(
    ("operations", "moved", "bound"),
    [
        (1_000_000_000, 20_000_000, Bound(10.0, "compute")),
        (1_000_000_000, 200_000_000, Bound(20.0, "memory")),
        (0, 10_000_000, Bound(1.0, "memory")),
        (100_000_000, 0, Bound(1.0, "compute")),
    ],
)
def test_bound_is_the_longer_of_both_times(operations, moved, bound):
    assert bound_of(operations, moved, ROOF) == bound


def test_roof_bends_at_its_ridge():
    assert ROOF.ridge == 10.0
    assert ROOF.at(10.0) == ROOF.at(1000.0) == 100e9
    assert ROOF.at(1.0) == 10e9


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"roofline": {"matrix_gflops": {"bfloat16": 1.0}, "copy_gb_per_s": 1.0}},
        {"roofline": {"copy_gb_per_s": 1.0}},
    ],
)
def test_no_roof_without_both_rates(environment):
    assert roof_of(environment, "float32") is None


def test_row_holds_what_the_roofline_says_of_its_records():
    found = {"forward": work_record(), "training": work_record(mode="training")}
    columns = work_columns(found, ROOFED[ENVIRONMENT])
    assert operations_of(found["forward"]) == columns["operations_forward"] == 1_100_000_000
    assert columns["intensity_forward"] == pytest.approx(55.0)
    assert (columns["bound_forward"], columns["bound_ms_forward"]) == ("compute", pytest.approx(11.0))
    assert columns["reach_forward"] == pytest.approx(0.5)
    assert columns["gflops_forward"] == pytest.approx(50.0)
    assert columns["operations_training"] == 3_300_000_000
    assert columns["reach_training"] == pytest.approx(1.5)
    assert columns["gflops_forward"] / 100.0 == pytest.approx(columns["reach_forward"])


def test_row_of_a_failed_trial_and_of_an_earlier_version_is_empty():
    failed = cost_record("ema", status="error", reason="why")
    for found in ({"forward": failed}, {"forward": cost_record("ema")}, {}):
        columns = work_columns(found, ROOFED[ENVIRONMENT])
        assert {columns[key] for key in columns if key != "unruled"} == {None}


def test_work_that_moves_and_computes_nothing_has_no_bound():
    free = work_record("identity", macs=0, elementwise=0, bytes_compulsory=0, bytes_moved=0)
    columns = work_columns({"forward": free}, ROOFED[ENVIRONMENT])
    assert columns["bound_ms_forward"] is columns["reach_forward"] is columns["intensity_forward"] is None


def test_table_shows_bounds_and_marks_what_is_above_the_roof():
    found = [work_record("ema"), work_record("ema", "training"), work_record("dual", samples_ms=[44.0] * 6)]
    table = work_table(frame_of(found))
    assert cell(table, "EMA", "macs_backward").text == "1.00"
    assert cell(table, "EMA", "elementwise").text == "100"
    assert cell(table, "EMA", "bound_ms_forward").text == "11.0 compute"
    assert cell(table, "EMA", "reach_forward").text == "50.0"
    assert cell(table, "EMA", "reach_forward").best
    assert cell(table, "EMA", "reach_training").text == "150§"
    assert not cell(table, "EMA", "reach_training").best
    assert any(note.startswith("Above the roof, training: EMA (150 %)") for note in table.notes)
    assert not any(note.startswith("Above the roof, forward") for note in table.notes)
    assert any("100 GFLOP/s" in note and "10.0 GB/s" in note for note in table.notes)
    assert "150§" in to_markdown(table)
    assert r"150\S" in to_latex(table)


def test_operations_without_a_rule_are_named_below_the_table():
    table = work_table(frame_of([work_record("ema", unruled=["aten::digamma x2"])]))
    assert any("EMA: operations without a rule" in note and "aten::digamma x2" in note for note in table.notes)


def test_table_without_a_roof_says_so():
    unmeasured = {ENVIRONMENT: {**ENVIRONMENTS[ENVIRONMENT], "roofline": {"not_measured": {"float32": "no memory"}}}}
    table = work_table(frame_of([work_record()], unmeasured))
    assert "reach_forward" not in [column.key for column in table.columns]
    assert any("not measured for float32 (float32: no memory)" in note for note in table.notes)


def test_main_table_stays_as_it_was():
    columns = {column.key for column in comparison_table(frame_of([work_record()])).columns}
    assert not columns & {"elementwise", "macs_backward", "reach_forward"}


def test_records_of_earlier_versions_make_no_table_on_work(tmp_path):
    assert not has_work(frame_of(small_run()))
    written = write_report(small_run(), ENVIRONMENTS, tmp_path)
    assert "Work and roofline" not in (tmp_path / "comparison.md").read_text()
    assert not any("roofline" in file.name.lower() for file in written.files)


def test_report_holds_the_table_and_a_figure_for_each_mode(tmp_path):
    found = [work_record(name, mode) for name in ("conv3x3", "ema", "dual") for mode in ("forward", "training")]
    written = write_report(found, ROOFED, tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert "## Work and roofline" in text
    assert {file.name for file in written.files if file.suffix == ".png" and "roofline" in file.name} == {
        f"roofline-operator-65x65-512-float32-cpu-{mode}.png" for mode in ("forward", "training")
    }
    assert "reach_forward" in sheet(list(written.frames))[0]


def test_of_many_settings_the_last_alone_has_its_roofline_drawn(tmp_path):
    found = [work_record(height=size, width=size) for size in (17, 25, 33, 49, 65)]
    written = write_report(found, ROOFED, tmp_path)
    assert [file.name for file in tmp_path.glob("roofline*.png")] == [
        "roofline-operator-65x65-512-float32-cpu-forward.png"
    ]
    assert "The roofline is drawn for the last of 5 settings; the tables have the others." in written.skipped


def crowd():
    """Sixty rows, half of them fused, near each other as operators are."""
    for index, name in enumerate(itertools.islice(itertools.cycle(OPERATORS), 60)):
        settings = json.dumps({"number": index // len(OPERATORS)})
        scale = 1.0 + 0.07 * index
        yield work_record(
            name,
            settings=settings,
            implementation="fused" if index % 2 else "reference",
            macs=int(5e8 * scale),
            bytes_compulsory=int(2e7 * (1 + index % 7)),
            samples_ms=[22.0 * scale * (1 + 0.3 * (index % 5))] * 6,
        )


def test_figure_of_sixty_rows_numbers_every_point_and_no_number_covers_another():
    plot = rooflines(frame_of(list(crowd())))[0]
    assert isinstance(plot, Plot)
    (axes,) = plot.figure.axes
    assert sorted(int(text.get_text()) for text in axes.texts) == list(range(1, 61))
    renderer = FigureCanvasAgg(plot.figure).get_renderer()
    for text in axes.texts:
        text.get_window_extent(renderer)
    boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]
    shared = [Bbox.intersection(one, other) for one, other in itertools.combinations(boxes, 2)]
    assert sum(box is not None and box.width * box.height > 1 for box in shared) == 0
    names = {text.get_text() for legend in plot.figure.legends for text in legend.get_texts()}
    assert {"1  Identity (number = 0)", "Attention", "Control"} <= names


def test_figure_without_a_roof_or_figures_says_why():
    (why,) = rooflines(frame_of([work_record()], ENVIRONMENTS))
    assert isinstance(why, str)
    assert why.endswith("65×65 map, 512 channels, batch 1, float32, CPU): the machine's rates were not measured.")
    drawn = rooflines(frame_of([work_record()]))
    assert isinstance(drawn[0], Plot)
    assert "training): no operator has the figures" in drawn[1]


def test_machine_is_measured_within_its_time():
    measured = measure_machine("cpu", ["float32", "bfloat16"], 0.02)
    for dtype in ("float32", "bfloat16"):
        taken = measured["matrix"][dtype]
        fastest = {int(side): min(ms) for side, ms in taken["samples_ms"].items()}
        assert all(len(ms) >= 3 for ms in taken["samples_ms"].values())
        assert taken["gflops"] == pytest.approx(max(2e-6 * side**3 / ms for side, ms in fastest.items()), rel=1e-3)
    copied = measured["copy"]
    assert copied["gb_per_s"] == pytest.approx(2e-6 * copied["bytes"] / 8 / min(copied["samples_ms"]), rel=1e-3)


def test_type_that_cannot_be_multiplied_says_why(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise RuntimeError('"addmm" not implemented\nand more')

    monkeypatch.setattr("attnbench.measuring.roofline.torch.mm", refuse)
    measured = measure_machine("cpu", ["float16"], 0.01)
    assert measured["matrix"] == {"float16": {"reason": '"addmm" not implemented'}}
    assert rates(measured)["not_measured"] == {"float16": '"addmm" not implemented'}


MEASURED = {"matrix": {"float32": {"gflops": 100.0}}, "copy": {"gb_per_s": 10.0}}


def test_calibration_measures_once_and_adds_what_is_missing(tmp_path, monkeypatch):
    asked = []

    def measure(device, dtypes, seconds):
        asked.append((device, list(dtypes), seconds))
        return {"matrix": {dtype: {"gflops": 50.0} for dtype in dtypes}, "copy": {"gb_per_s": 5.0}}

    monkeypatch.setattr(calibration, "_measure_apart", measure)
    calibration.calibrate(tmp_path, ENVIRONMENT, "cpu", ["float32", "float32"], 0.5)
    calibration.calibrate(tmp_path, ENVIRONMENT, "cpu", ["float32"], 0.5)
    assert asked == [("cpu", ["float32"], 0.5)]
    write_machine(tmp_path, ENVIRONMENT, MEASURED)
    calibration.calibrate(tmp_path, ENVIRONMENT, "cpu", ["float32", "bfloat16"], 0.5)
    assert asked[1:] == [("cpu", ["bfloat16"], 0.5)]
    assert rates(read_machine(tmp_path, ENVIRONMENT)) == {
        "matrix_gflops": {"float32": 100.0, "bfloat16": 50.0},
        "copy_gb_per_s": 10.0,
    }


def test_calibration_measures_in_a_process_of_its_own(tmp_path):
    calibration.calibrate(tmp_path, ENVIRONMENT, "cpu", ["float32"], 0.01)
    found = rates(read_machine(tmp_path, ENVIRONMENT))
    assert found["matrix_gflops"]["float32"] > 0
    assert found["copy_gb_per_s"] > 0


def dies(*_args):
    raise SystemExit(3)


def test_machine_that_cannot_be_measured_costs_its_roofline_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "_measure", dies)
    calibration.calibrate(tmp_path, ENVIRONMENT, "cpu", ["float32"], 0.01)
    why = "the measuring process ended before it was done"
    assert rates(read_machine(tmp_path, ENVIRONMENT)) == {"not_measured": {"float32": why, "copy": why}}


def test_rates_stand_in_the_environment_and_leave_its_file_alone(tmp_path):
    with records.RecordWriter(tmp_path) as writer:
        writer.write_environment(ENVIRONMENTS[ENVIRONMENT], ENVIRONMENT)
    write_machine(tmp_path, ENVIRONMENT, MEASURED)
    assert records.load_environments(tmp_path) == ROOFED
    assert json.loads((tmp_path / "environments" / f"{ENVIRONMENT}.json").read_text()) == ENVIRONMENTS[ENVIRONMENT]


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"matrix": 3, "copy": []}', '{"matrix": {"float32": {"gflops": "fast"}}}', '{"copy": 0}']
)
def test_torn_or_foreign_machine_file_is_no_roof(tmp_path, text):
    path = tmp_path / "machine" / f"{ENVIRONMENT}.json"
    path.parent.mkdir()
    path.write_text(text)
    assert rates(read_machine(tmp_path, ENVIRONMENT)) == {}


def test_machine_file_that_cannot_be_written_is_the_users_to_mend(tmp_path):
    (tmp_path / "machine").write_text("a file")
    with pytest.raises(UsageError, match="expected a folder that can be written"):
        write_machine(tmp_path, ENVIRONMENT, MEASURED)


def test_roof_of_one_folder_is_not_lost_to_another(tmp_path, capsys):
    for name in ("with", "without"):
        with records.RecordWriter(tmp_path / name) as writer:
            writer.write_environment(ENVIRONMENTS[ENVIRONMENT], ENVIRONMENT)
            writer.write(work_record("ema" if name == "with" else "dual"))
    write_machine(tmp_path / "with", ENVIRONMENT, MEASURED)
    report_cli.main([str(tmp_path / "with"), str(tmp_path / "without"), "--output", str(tmp_path / "out")])
    capsys.readouterr()
    assert "Reaches fwd" in (tmp_path / "out" / "comparison.md").read_text()
