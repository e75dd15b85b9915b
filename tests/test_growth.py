"""Exponents, crossovers and shapes, from records whose laws are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
from record_factory import ENVIRONMENTS, cost_record

from attnbench import report
from attnbench.records import Record
from attnbench.report.growth import crossovers, exponents, fit_exponent, shape_ratios, shapes, sweeps
from attnbench.report.growth_tables import growth_sheets, growth_tables

SIDES = (16, 32, 64, 128)


def law(operator: str, factor: float, exponent: float, **fields: Any) -> list[Record]:
    """Records whose MACs, peak and latency are `factor * N^exponent`."""
    made = []
    for side in SIDES:
        value = factor * (side * side) ** exponent
        samples = [value * (1 + 0.001 * step) for step in range(-4, 5)]
        figures = {"macs": round(1e6 * value), "peak_bytes": round(1e6 * value), "samples_ms": samples}
        figures |= {"control_samples_ms": [1.0] * 9, "growth": exponent}
        made.append(cost_record(operator, size=side, **{**figures, **fields}))
    return made


def frames(*records: list[Record]) -> list[Any]:
    return report.comparison_frames([record for part in records for record in part], ENVIRONMENTS)


def test_exponent_of_a_power_law_is_its_exponent_and_certain() -> None:
    fit = fit_exponent([1, 10, 100], [5, 500, 50_000])
    assert fit.slope == pytest.approx(2)
    assert fit.low == pytest.approx(2, abs=1e-6)
    assert fit.high == pytest.approx(2, abs=1e-6)


def test_interval_is_students_over_the_residuals() -> None:
    # ln x = 0, 1, 2 and ln y = 0, 1, 3: slope 3/2, residuals 1/6, -1/3, 1/6, t(0.975, 1) = 12.7062
    fit = fit_exponent([1, math.e, math.e**2], [1, math.e, math.e**3])
    assert fit.slope == pytest.approx(1.5)
    assert fit.high - fit.slope == pytest.approx(12.7062 * math.sqrt(1 / 12), rel=1e-4)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([1, 2, 3], [1, 0, 3])])
def test_exponents_need_three_positive_points(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="expected at least 3 positive points"):
        fit_exponent(x, y)


def test_exponents_of_a_sweep_stand_beside_the_declared_ones() -> None:
    (sweep,) = sweeps(frames(law("ema", 1.0, 1.0), law("non_local", 0.001, 2.0)))
    assert (sweep.axis, sweep.points()) == ("positions", [side * side for side in SIDES])
    table = exponents(sweep).set_index("operator")
    for name, exponent in (("EMA", 1.0), ("Non-local", 2.0)):
        assert table.loc[name, "declared"] == exponent
        for metric in ("macs", "peak_mib_forward", "latency_ms_forward"):
            assert table.loc[name, metric] == pytest.approx(exponent, abs=1e-3)


def test_failed_points_are_left_out_and_two_points_make_no_exponent() -> None:
    records = law("ema", 1.0, 1.0) + law("non_local", 0.001, 2.0)
    lost = [cost_record("non_local", size=side, status="out_of_memory") for side in SIDES[2:]]
    kept = [record for record in records if record["operator"] == "ema" or record["height"] < 64]
    (sweep,) = sweeps(frames(kept + lost))
    table = exponents(sweep).set_index("operator")
    assert math.isnan(table.loc["Non-local", "macs"])
    assert table.loc["EMA", "macs"] == pytest.approx(1.0, abs=1e-3)


def test_crossover_is_where_the_laws_meet() -> None:
    # 0.001 N^2 = N at N = 1000
    (sweep,) = sweeps(frames(law("ema", 1.0, 1.0), law("non_local", 0.001, 2.0)))
    table = crossovers(sweep)
    assert set(table["metric"]) == {"macs", "peak_mib_forward", "latency_ms_forward"}
    assert set(zip(table["cheaper above"], table["than"], strict=True)) == {("EMA", "Non-local")}
    assert list(table["positions"]) == pytest.approx([1000] * 3, rel=1e-3)


def test_latencies_cross_only_where_their_intervals_are_apart_at_both_ends() -> None:
    noisy = law("non_local", 0.001, 2.0)
    for record in noisy:
        middle = record["samples_ms"][4]
        record["samples_ms"] = [middle * (0.02 + 0.98 * step) for step in range(5)] + [middle * 9] * 4
    (sweep,) = sweeps(frames(law("ema", 1.0, 1.0), noisy))
    assert set(crossovers(sweep)["metric"]) == {"macs", "peak_mib_forward"}


def test_parallel_laws_do_not_cross() -> None:
    (sweep,) = sweeps(frames(law("ema", 1.0, 1.0), law("dual", 2.0, 1.0)))
    assert crossovers(sweep).empty


def test_sweeps_over_channels_and_batches_hold_the_rest_fixed() -> None:
    records = [cost_record("ema", channels=channels) for channels in (64, 128, 256)]
    records += [cost_record("ema", batch=batch) for batch in (1, 2, 4)]
    found = {sweep.axis: sweep.points() for sweep in sweeps(frames(records))}
    assert found == {"channels": [64, 128, 256, 512], "batch": [1, 2, 4]}


def test_shapes_are_held_against_the_square_of_equal_area() -> None:
    records = [cost_record("ema", size=66, macs=100), cost_record("ema", size=66, height=33, width=132, macs=150)]
    records.append(cost_record("ema", size=66, height=33, width=133, channels=64, macs=1))
    (compared,) = shapes(frames(records))
    assert [(frame.cost["height"], frame.cost["width"]) for frame in compared.others] == [(33, 132)]
    (row,) = shape_ratios(compared).to_dict("records")
    assert row["33×132: MACs"] == 1.5


def test_report_has_the_sections_and_the_sheets(tmp_path: Any) -> None:
    records = law("ema", 1.0, 1.0) + law("non_local", 0.001, 2.0)
    compared = frames(records)
    assert [heading for heading, _ in growth_tables(compared)] == ["Growth", "Crossovers"]
    assert set(growth_sheets(compared)) == {"exponents.csv", "crossovers.csv"}
    report.write_report(records, ENVIRONMENTS, tmp_path)
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "EMA overtakes Non-local" in text
    assert "32×32" in text
    assert (tmp_path / "exponents.csv").read_text(encoding="utf-8").startswith("axis,")


def test_single_settings_have_no_growth() -> None:
    assert growth_tables(frames([cost_record("ema")])) == []
