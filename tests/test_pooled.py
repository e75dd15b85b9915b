"""Seeds that were trained on several machines or in several precisions, as seeds of one row."""

import json

import pytest
from record_factory import ENVIRONMENT, ENVIRONMENTS, accuracy_record, cost_record
from test_tables import cell

from attnbench import records
from attnbench.cli.report import main
from attnbench.config import Recipe
from attnbench.errors import UsageError
from attnbench.report.documents import readme_block, section_block
from attnbench.report.frames import accuracy_frames
from attnbench.report.pooled import POOLABLE, pool
from attnbench.report.tables import accuracy_table

OTHER = "f" * 16
BOTH = {**ENVIRONMENTS, OTHER: {**ENVIRONMENTS[ENVIRONMENT], "cpu": {"model": "Other CPU", "available_cores": 8}}}
FIELDS = ("environment", "recipe.amp")


def here(operator, seed, miou, **fields):
    return accuracy_record(operator, seed, miou=miou, **{"recipe.amp": "bfloat16", **fields})


def there(operator, seed, miou, **fields):
    return here(operator, seed, miou, **{"environment": OTHER, "recipe.amp": "off", **fields})


def table_of(*made, fields=FIELDS):
    (frame,) = accuracy_frames(*pool(made, BOTH, fields)[:2])
    return accuracy_table(frame)


def test_seeds_of_two_machines_are_seeds_of_one_row_and_apart_without_pooling():
    made = [here("ema", 0, 0.5), here("ema", 1, 0.6), there("ema", 2, 0.7)]
    assert cell(table_of(*made), "EMA", "miou").text == "60.0 ± 10.0 (3)"
    assert len(accuracy_frames(*pool(made, BOTH, ())[:2])) == 2
    assert pool(made, BOTH, ()) == (made, BOTH, [])


def test_gains_are_within_a_block_so_that_what_blocks_differ_in_is_in_none():
    """The other machine scores ten points more whatever the operator; the gain of EMA is two points on both."""
    made = [here(name, seed, 0.5) for name in ("conv3x3", "dual", "non_local") for seed in (0, 1)]
    made += [here("ema", 0, 0.52), *(there("conv3x3", seed, 0.6) for seed in (1, 2))]
    made += [there("ema", seed, 0.62) for seed in (1, 2)]
    table = table_of(*made)
    assert cell(table, "Conv 3x3", "miou").text == "53.3 ± 5.8 (3)"  # of seed 1 the fuller block's counts
    assert cell(table, "EMA", "gain").text.startswith("+2.0 ± 0.0 (3)")
    assert not any("another block" in note for note in table.notes)


def test_without_a_control_in_its_block_a_gain_is_over_the_control_of_the_seed():
    made = [here("conv3x3", 0, 0.5), here("conv3x3", 1, 0.5), here("ema", 1, 0.53), there("ema", 0, 0.51)]
    table = table_of(*made)
    assert cell(table, "EMA", "gain").text.startswith("+2.0 ± 1.4 (2)")
    assert "EMA: its gain of seed 0 is over the 3x3 convolution of another block." in table.notes


def test_two_trainings_of_one_seed_count_once_and_the_fuller_block_wins():
    made = [here("ema", 0, 0.5), here("dual", 0, 0.4), there("ema", 0, 0.9), there("ema", 1, 0.6)]
    assert cell(table_of(*made), "EMA", "miou").text == "55.0 ± 7.1 (2)"
    assert cell(table_of(*reversed(made)), "EMA", "miou").text == "55.0 ± 7.1 (2)"


def test_a_training_that_failed_in_one_block_is_taken_from_the_other():
    failed = here("ema", 0, 0.5, status="crashed", reason="no memory")
    del failed["miou"]
    assert cell(table_of(failed, here("dual", 0, 0.4), there("ema", 0, 0.9)), "EMA", "miou").text == "90.0 (1)"


def test_only_the_latest_source_of_an_operator_counts():
    old = [here("ema", seed, 0.1, source="old") for seed in (0, 1)]
    new = there("ema", 2, 0.6, started="2026-02-02T00:00:00.0Z")
    assert cell(table_of(*old, new), "EMA", "miou").text == "60.0 (1)"
    notes = ["2 training(s) are not shown: their operator's code has changed since."]
    assert pool([*old, new], BOTH, FIELDS).notes == notes


def test_boundaries_that_one_machine_alone_scored_are_those_of_its_seeds():
    scored = {"boundary": True, "boundary_f": 0.25, "boundary_f_of_class": [0.25]}
    table = table_of(here("ema", 0, 0.5, **scored), there("ema", 1, 0.6))
    assert cell(table, "EMA", "miou").text == "55.0 ± 7.1 (2)"
    assert cell(table, "EMA", "boundary_f").text == "25.0 (1)"


def test_a_machine_of_which_nothing_counts_is_not_named():
    old = [here("ema", 0, 0.1, source="old")]
    new = [there("ema", seed, 0.6, started="2026-02-02T00:00:00.0Z") for seed in (0, 1)]
    (frame,) = accuracy_frames(*pool([*old, *new], BOTH, FIELDS)[:2])
    assert frame.setting["environment"] == OTHER


def test_another_recipe_stays_apart():
    longer = there("ema", 1, 0.6, **{"recipe.iterations": 600})
    assert len(accuracy_frames(*pool([here("ema", 0, 0.5), longer], BOTH, FIELDS)[:2])) == 2
    precise = there("ema", 1, 0.6)
    assert len(accuracy_frames(*pool([here("ema", 0, 0.5), precise], BOTH, ["environment"])[:2])) == 2
    busier = here("ema", 1, 0.6, threads=2)
    assert len(accuracy_frames(*pool([here("ema", 0, 0.5), there("ema", 1, 0.6), busier], BOTH, FIELDS)[:2])) == 2


def test_seconds_of_two_machines_are_not_averaged_and_costs_stay_as_they_are():
    cost = cost_record()
    found, _, _ = pool([here("ema", 0, 0.5), there("ema", 1, 0.6), cost], BOTH, FIELDS)
    assert found[0] == cost
    (frame,) = accuracy_frames(found, BOTH)
    assert "train_s" not in [column.key for column in accuracy_table(frame).columns]


def test_the_table_says_what_was_trained_where():
    notes = " ".join(table_of(here("ema", 0, 0.5), here("dual", 0, 0.5), there("ema", 3, 0.6)).notes)
    assert f"Example CPU, 1 thread, torch 2.9.0 (environment {ENVIRONMENT}), recipe.amp bfloat16: seed 0: 2." in notes
    assert f"Other CPU, 1 thread, torch 2.9.0 (environment {OTHER}), recipe.amp off: seed 3: 1." in notes
    assert "recipe.amp bfloat16 or off" in notes


@pytest.mark.parametrize("fields", [["seed"], ["recipe.iterations"], ["environment", "threads"]])
def test_what_is_no_rounding_or_does_not_differ_is_refused(fields):
    with pytest.raises(UsageError, match=f"got '{fields[-1]}'"):
        pool([here("ema", 0, 0.5), there("ema", 1, 0.6)], BOTH, fields)


def test_poolable_fields_are_fields_of_a_training():
    known = {*accuracy_record(), *records.Trial("accuracy", "ema", "reference", "cpu").__dataclass_fields__}
    known |= {f"recipe.{name}" for name in Recipe.__dataclass_fields__}
    assert set(POOLABLE) <= known


def test_documents_of_pooled_scores_name_their_machines_whatever_was_measured_beside_them():
    made = [cost_record(started="2020-01-01T00:00:00.0Z"), here("ema", 0, 0.5), there("ema", 1, 0.6)]
    found, machines, _ = pool(made, BOTH, FIELDS)
    for block in (
        readme_block(found, machines),
        section_block(found, machines, "Accuracy", command="make compare"),
    ):
        assert "55.0 ± 7.1 (2)" in block and "and Other CPU" in block and "2020-01-01" not in block
    assert "on 2020-01-01 with" in section_block(found, machines, "Comparison", command="make compare")


def test_the_command_pools_folders_into_a_report_and_a_document(tmp_path):
    sides = {"a": [here("ema", 0, 0.5), here("conv3x3", 0, 0.4)], "b": [there("ema", 1, 0.6), there("ema", 0, 0.7)]}
    for name, made in sides.items():
        (tmp_path / name / "records").mkdir(parents=True)
        (tmp_path / name / "environments").mkdir()
        (tmp_path / name / "records" / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in made))
        for key, environment in BOTH.items():
            (tmp_path / name / "environments" / f"{key}.json").write_text(json.dumps(environment))
    page = tmp_path / "page.md"
    page.write_text("<!-- x:begin -->\n<!-- x:end -->\n")
    folders = [str(tmp_path / name) for name in sides]
    options = ["--pool", "environment,recipe.amp", "--output", str(tmp_path / "all")]
    assert main([*folders, *options, "--document", str(page), "--block", "x"]) == 0
    text = page.read_text()
    assert f"on Example CPU, 1 thread, torch 2.9.0 (environment `{ENVIRONMENT}`) and Other CPU" in text
    written = (tmp_path / "all" / "comparison.md").read_text()
    assert "1 training(s) are not shown" in written
    assert f"## Environment {ENVIRONMENT}" in written
    assert f"## Environment {OTHER}" in written
