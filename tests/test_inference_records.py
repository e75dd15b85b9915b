"""How images are read is part of a trial where it is not whole and once; earlier records keep their identity."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import record_factory
import torch

from attnbench.cli import compare, train
from attnbench.config import Accuracy, Experiment, Inference
from attnbench.errors import UsageError
from attnbench.models.saved import load_any
from attnbench.planning import plan
from attnbench.records import Trial, identity, load
from attnbench.report.frames import arrange
from attnbench.report.tables import accuracy_table
from attnbench.report.wording import accuracy_title
from attnbench.schema import validate

WINDOWS = Inference("slide", (64, 64), (43, 43), scales=(0.5, 1.0), flip=True)
READ = {
    "inference.mode": "slide",
    "inference.crop_size": [64, 64],
    "inference.stride": [43, 43],
    "inference.scales": [0.5, 1.0],
    "inference.flip": True,
}
RECORDS = Path(__file__).parents[1] / "results" / "reference"


def trial_of(**fields):
    experiment = Experiment(operators=("conv3x3",), cost=None, accuracy=Accuracy(**fields), device="cpu")
    return plan(experiment)[0]


def test_what_was_asked_for_is_in_the_trial():
    plain, read, outlined = trial_of(), trial_of(inference=WINDOWS), trial_of(boundary=True)
    assert (plain.inference, plain.boundary) == (None, None)
    assert {key: value for key, value in read.fields().items() if key.startswith("inference.")} == READ
    assert outlined.fields() == {**plain.fields(), "boundary": True}
    assert len({identity(trial, "e", "s") for trial in (plain, read, outlined)}) == 3


def test_records_of_before_keep_their_identity():
    """The fields of a trial of the default experiment are those that committed records were made with."""
    lines = (line for file in sorted(RECORDS.rglob("*.jsonl")) for line in file.read_text().splitlines())
    found = next(
        record
        for record in map(json.loads, lines)
        if record["task"] == "accuracy" and record["dataset"] == "context" and record["operator"] == "conv3x3"
    )
    named = {item.name for item in dataclasses.fields(Trial)}
    trial = dataclasses.replace(
        trial_of(),
        **{name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if name in named},
    )
    nested = ("recipe", "network")
    for part in nested:
        known = {key.partition(".")[2]: value for key, value in found.items() if key.startswith(f"{part}.")}
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
        trial = dataclasses.replace(trial, **{part: dataclasses.replace(getattr(trial, part), **values)})
    assert identity(trial, found["environment"], found["source"]) == found["identity"]


def scored(**fields):
    return [
        record_factory.accuracy_record(operator, seed, **fields) for operator in ("conv3x3", "ema") for seed in (0, 1)
    ]


def test_the_report_keeps_readings_apart_and_says_which():
    arranged = arrange([*scored(), *scored(**READ)], {})
    assert len(arranged.scored) == 2
    titles = {accuracy_title(frame.accuracy) for frame in arranged.scored}
    assert any("read in windows of 64×64 at scales 0.5, 1 and mirrored" in title for title in titles)
    assert sum("read " in title for title in titles) == 1


def test_the_boundary_score_is_a_column_where_it_was_computed():
    plain = accuracy_table(arrange(scored(), {}).scored[0])
    outlined = accuracy_table(
        arrange(scored(boundary=True, boundary_f=0.25, boundary_f_of_class=[0.5, 0.0, None]), {}).scored[0]
    )
    keys = [column.key for column in outlined.columns]
    assert "boundary_f" in keys and "boundary_f" not in [column.key for column in plain.columns]
    assert outlined.rows[0][keys.index("boundary_f")].text.startswith("25.0")


@pytest.mark.parametrize("fields", [{"boundary_f": 1.5}, {"boundary": False}, {"boundary_f_of_class": ["a"]}])
def test_the_schema_knows_the_fields(fields):
    with pytest.raises(ValueError, match="boundary"):
        validate({**scored()[0], **fields})


def test_cached_features_are_those_of_whole_images():
    with pytest.raises(UsageError, match="cache_features: expected images that are read whole and once"):
        trial_of(freeze_backbone=True, cache_features=True, inference=WINDOWS)
    assert trial_of(freeze_backbone=True, cache_features=True).cache_features


PRESET = """
cost = false
[accuracy]
boundary = true
[accuracy.inference]
mode = "slide"
crop_size = [32, 32]
stride = [16, 16]
[accuracy.recipe]
iterations = 1
batch_size = 2
"""


@pytest.fixture
def threads():
    """Training in this process sets torch's threads, which environments are told apart by."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("command", ["compare", "train"])
def test_a_preset_reaches_scores_records_and_exported_weights(tmp_path, command):
    preset = tmp_path / "own.toml"
    preset.write_text(PRESET)
    options = ["--preset", str(preset), "--device", "cpu", "--output", str(tmp_path / "out")]
    if command == "train":
        assert train.main([*options, "--operator", "identity"]) == 0
        (weights,) = (tmp_path / "out").rglob("model.safetensors")
        assert load_any(weights).inference == Inference("slide", (32, 32), (16, 16))
    else:
        assert compare.main([*options, "--operators", "identity"]) == 0
    (record,) = load(tmp_path / "out").records
    assert (record["inference.mode"], record["inference.crop_size"], record["boundary"]) == ("slide", [32, 32], True)
    assert len(record["boundary_f_of_class"]) == len(record["classes"]) and 0 <= record["boundary_f"] <= 1
