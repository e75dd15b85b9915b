import dataclasses

import pytest

from attnbench.config import Experiment, Recipe, from_mapping, load_preset, preset_names, updated
from attnbench.errors import UsageError


@pytest.mark.parametrize("name", preset_names())
def test_presets_load(name):
    assert isinstance(load_preset(name), Experiment)


def test_presets_say_what_the_issue_promises():
    assert len(load_preset("accuracy").accuracy.seeds) == 3
    assert load_preset("accuracy").cost is None
    assert load_preset("paper").cost.sizes == ((65, 65), (97, 97), (129, 129))
    assert load_preset("paper").accuracy is None
    assert load_preset("default").cost.sizes == ((33, 33),)
    assert load_preset("default").accuracy.seeds == (0,)
    assert load_preset("camvid").accuracy.dataset == "camvid"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"operator": ["ema"]}, "unknown key 'operator'; did you mean 'operators'?"),
        (
            {"accuracy": {"recipe": {"iteration": 5}}},
            "accuracy, recipe: unknown key 'iteration'; did you mean 'iterations'?",
        ),
        ({"accuracy": {"recipe": {"iterations": "5"}}}, "iterations: expected int, got '5'"),
        ({"accuracy": {"recipe": {"optimizer": "sdg"}}}, "unknown value 'sdg'; did you mean 'sgd'?"),
        ({"cost": {"sizes": [[65]]}}, "sizes: expected 2 values, got [65]"),
        ({"cost": {"sizes": 65}}, "sizes: expected a list, got 65"),
        ({"cost": {"channels": [True]}}, "channels: expected int, got True"),
        ({"cost": 3}, "cost: expected a table, got 3"),
        ({"device": 1}, "device: expected str, got 1"),
    ],
)
def test_errors_name_key_and_expectation(table, words):
    with pytest.raises(UsageError) as caught:
        from_mapping(Experiment, table, where="preset 'p'")
    assert words in str(caught.value)
    assert str(caught.value).startswith("preset 'p'")


def test_sub_table_keeps_the_other_defaults():
    changed = from_mapping(Experiment, {"accuracy": {"recipe": {"iterations": 7}}}, where="x")
    assert changed.accuracy.recipe == dataclasses.replace(Recipe(), iterations=7)
    assert changed.cost == Experiment().cost


def test_updated_nests_and_false_removes():
    changed = updated(load_preset("default"), {"cost": False, "accuracy": {"seeds": [3]}}, where="x")
    assert changed.cost is None
    assert changed.accuracy.seeds == (3,)


def test_integers_are_floats_where_floats_are_meant():
    assert from_mapping(Recipe, {"power": 1}, where="x").power == 1.0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acuracy", "did you mean 'accuracy'?"),
        ("missing.toml", "expected an existing file, got 'missing.toml'"),
    ],
)
def test_unknown_preset(name, words):
    with pytest.raises(UsageError, match="preset") as caught:
        load_preset(name)
    assert words in str(caught.value)


def test_preset_file_of_another_encoding(tmp_path):
    path = tmp_path / "p.toml"
    path.write_bytes("# é\n".encode("latin-1"))
    with pytest.raises(UsageError, match="expected a TOML file in UTF-8"):
        load_preset(str(path))


def test_preset_file_with_bad_toml(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text("operators = [")
    with pytest.raises(UsageError, match="expected TOML"):
        load_preset(str(path))
