import dataclasses
import json
import multiprocessing
import os

import pytest

from attnbench.config import Network, Recipe
from attnbench.errors import UsageError
from attnbench.records import PROTOCOL, RecordWriter, Trial, identity, load, load_environments, validate

TRIAL = Trial(
    task="cost", operator="ema", implementation="reference", device="cpu", level="operator", mode="forward",
    channels=64, height=9, width=9, batch=1, dtype="float32", num_classes=21,
)  # fmt: skip


def record(trial=TRIAL, started="2026-01-01T00:00:00.000000Z", **changes):
    base = {
        **trial.fields(), "protocol": PROTOCOL, "identity": identity(trial, "e" * 16, "s"), "title": "EMA", "kind":
        "attention",
        "environment": "e" * 16, "source": "s", "commit": "unknown", "started": started, "wall_s": 1.0, "status": "ok",
        "params": 1, "macs": 2, "uncounted": [], "peak_bytes": 3, "samples_ms": [1.0], "control_samples_ms": [1.0],
        "calls_per_sample": 1,
    }  # fmt: skip
    return {**base, **changes}


@pytest.mark.parametrize(
    "change",
    [
        {"operator": "non_local"}, {"implementation": "fused"}, {"settings": '{"stages": 5}'}, {"level": "head"},
        {"mode": "training"},
        {"channels": 32}, {"height": 10}, {"width": 10}, {"batch": 2}, {"dtype": "bfloat16"}, {"device": "cuda"},
        {"network": Network()}, {"network": Network(output_stride=16)}, {"recipe": Recipe()}, {"dataset": "context"},
        {"seed": 1}, {"threads": 1},
        {"weights_hash": "0" * 16},
    ],
    ids=str,
)  # fmt: skip
def test_every_field_is_part_of_the_identity(change):
    assert identity(dataclasses.replace(TRIAL, **change), "e", "s") != identity(TRIAL, "e", "s")


def test_environment_and_source_are_part_of_the_identity_and_the_place_of_weights_is_not():
    assert len({identity(TRIAL, "e", "s"), identity(TRIAL, "f", "s"), identity(TRIAL, "e", "t")}) == 3
    here, there = (dataclasses.replace(TRIAL, network=Network(backbone_weights=path)) for path in ("a.pth", "b/a.pth"))
    assert identity(here, "e", "s") == identity(there, "e", "s")
    assert there.fields()["network.backbone_weights"] == "a.pth"


def test_written_records_come_back(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.write(record())
        writer.write_environment({"cpu": "x"}, "e" * 16)
    found = load(tmp_path)
    assert found.records == [record()]
    assert found.problems == []
    assert load_environments(tmp_path) == {"e" * 16: {"cpu": "x"}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"macs": -1}, "macs"),
        ({"status": "fine", "reason": "x"}, "status"),
        ({"unheard": 1}, "unheard"),
        ({"samples_ms": []}, "samples_ms"),
        ({"status": "error"}, "reason"),
        ({"protocol": PROTOCOL + 1}, f"expected protocol {PROTOCOL}, got {PROTOCOL + 1}"),
    ],
)
def test_what_does_not_fit_the_schema_is_not_written(tmp_path, changes, words):
    with RecordWriter(tmp_path) as writer, pytest.raises(ValueError, match=words):
        writer.write(record(**changes))
    assert load(tmp_path).records == []


def test_torn_and_foreign_lines_are_set_aside_and_reported(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.write(record())
    whole = writer.path.read_text()
    other = json.dumps(record(protocol=PROTOCOL + 1, identity="1" * 24))
    writer.path.write_text("\n".join([whole[:40], whole.strip(), "[1]", other, "\xff"]) + "\n" + whole[:100])
    found = load(tmp_path)
    assert found.records == [record()]
    assert len(found.problems) == 5
    assert "line 1: set aside: torn or not JSON" in found.problems[0]
    assert f"expected protocol {PROTOCOL}" in found.problems[2]


def test_earliest_record_of_a_trial_counts(tmp_path):
    for number, started in enumerate(("2026-01-02T00:00:00.0Z", "2026-01-01T00:00:00.0Z")):
        with RecordWriter(tmp_path) as writer:
            writer.write(record(started=started))
        writer.path.rename(writer.path.with_name(f"{number}.jsonl"))
    assert [item["started"] for item in load(tmp_path).records] == ["2026-01-01T00:00:00.0Z"]


def _write_many(folder, operator):
    with RecordWriter(folder) as writer:
        for seed in range(50):
            trial = dataclasses.replace(TRIAL, operator=operator, seed=seed)
            writer.write(record(trial, operator=operator))


def test_two_writers_do_not_meet(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path, name)) for name in ("ema", "non_local")]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
        assert process.exitcode == 0
    found = load(tmp_path)
    assert len(found.records) == 100
    assert found.problems == []
    assert len(list((tmp_path / "records").iterdir())) == 2


def test_empty_file_is_removed(tmp_path):
    RecordWriter(tmp_path).close()
    assert list((tmp_path / "records").iterdir()) == []


def test_folder_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UsageError, match="expected a folder that can be written"):
        RecordWriter(blocked)


def test_full_disk_is_a_named_error(tmp_path, monkeypatch):
    with RecordWriter(tmp_path) as writer:
        writer.write(record())
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(UsageError, match="No space left on device"):
            writer.write(record(started="2026-01-03T00:00:00.0Z"))
    assert load(tmp_path).records[0] == record()


def test_accuracy_records_need_their_scores():
    with pytest.raises(ValueError, match=r"miou|contain"):
        validate({**record(), "task": "accuracy"})
