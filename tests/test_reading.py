"""Folders of records as they are found: torn, foreign, hostile, and very many."""

import contextlib
import json
import math
import os
import subprocess
import time

import many_records
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_factory import accuracy_record, cost_record

from attnbench import reading, records, report, schema
from attnbench.familiar import Familiar
from attnbench.report import writing

RECORD = cost_record("ema")
LINE = json.dumps(RECORD, sort_keys=True).encode()


def folder_of(tmp_path, content, name="x.jsonl"):
    (tmp_path / "records").mkdir(exist_ok=True)
    (tmp_path / "records" / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (LINE.replace(b'"EMA"', b'"E\0A"'), "torn or not JSON"),
        (LINE.replace(b'"EMA"', b'"\xff\xfe"'), "torn or not JSON"),
        (b"\0" * 4096, "torn or not JSON"),
        (LINE.decode().encode("utf-16"), "torn or not JSON"),
        (LINE.replace(b'"wall_s": 1.5', b'"wall_s": NaN'), "torn or not JSON"),
        (LINE.replace(b'"wall_s": 1.5', b'"wall_s": 1e999'), "wall_s|torn"),
        (LINE[:-1] + b', "wall_s": 2.0}', "field 'wall_s' stands there twice"),
        (LINE[:-1] + b', "wall_s" : 2.0}', "field 'wall_s' stands there twice"),
        (b"[" * 900 + b"]" * 900, "expected an object, got list"),
        (b'{"protocol": ' + b"[" * 900 + b"]" * 900 + b"}", "expected protocol"),
        (LINE + LINE, "torn or not JSON"),
        (b'"text"', "expected an object, got str"),
        (b"{}", "expected protocol 1, got None"),
        (LINE.replace(b'"protocol": 1', b'"protocol": 2'), "measure again, or read it with that version"),
        (LINE.replace(b'"protocol": 1', b'"protocol": true'), "protocol"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_foreign_lines_are_set_aside_between_sound_ones(tmp_path, line, words):
    other = json.dumps({**RECORD, "identity": "1" * 24}).encode()
    content = LINE + b"\n" + line.replace(b"\n", b"") + b"\n" + other + b"\n"
    found = reading.load(folder_of(tmp_path, content))
    assert [record["identity"] for record in found.records] == [RECORD["identity"], "1" * 24]
    assert len(found.problems) == 1
    assert found.problems[0].startswith("x.jsonl, line 2: set aside: ")
    assert any(word in found.problems[0] for word in words.split("|")), found.problems
    assert (tmp_path / "records" / "x.jsonl").read_bytes() == content


def test_a_byte_order_mark_and_carriage_returns_change_nothing(tmp_path):
    found = reading.load(folder_of(tmp_path, b"\xef\xbb\xbf" + LINE + b"\r\n\r\n"))
    assert found.records == [RECORD]
    assert found.problems == []


def test_a_line_without_end_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST_LINE", 1 << 16)
    found = reading.load(folder_of(tmp_path, b"x" * (1 << 20) + b"\n" + LINE + b"\n" + b"y" * (1 << 20)))
    assert found.records == [RECORD]
    assert ["set aside: expected at most" in problem for problem in found.problems] == [True, True]


def test_a_thousand_bad_lines_are_told_in_a_few(tmp_path):
    found = reading.load(folder_of(tmp_path, b"{\n" * 1000 + LINE))
    assert found.records == [RECORD]
    assert len(found.problems) == 21
    assert found.problems[-1] == "x.jsonl: 980 more line(s) set aside"


def test_what_is_not_a_file_is_reported(tmp_path):
    folder_of(tmp_path, LINE)
    inside = tmp_path / "records"
    (inside / "folder.jsonl").mkdir()
    (inside / "loop.jsonl").symlink_to("loop.jsonl")
    (inside / "nowhere.jsonl").symlink_to("absent")
    (inside / "endless.jsonl").symlink_to("/dev/zero")
    os.mkfifo(inside / "pipe.jsonl")
    (tmp_path / "environments").mkdir()
    (tmp_path / "environments" / "bad.json").write_bytes(b"\xff")
    (tmp_path / "environments" / "list.json").write_text("[]")
    (tmp_path / "environments" / "deep.json").write_text("[" * 100_000)
    found = reading.load(tmp_path)
    assert found.records == [RECORD]
    assert sorted(problem.split("'")[1] for problem in found.problems) == [
        "endless.jsonl", "folder.jsonl", "loop.jsonl", "nowhere.jsonl", "pipe.jsonl",
    ]  # fmt: skip
    assert reading.load_environments(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_reported(tmp_path):
    folder_of(tmp_path, LINE)
    (tmp_path / "records" / "x.jsonl").chmod(0)
    assert "Permission denied" in reading.load(tmp_path).problems[0]


def test_records_that_are_a_file_are_reported(tmp_path):
    (tmp_path / "records").write_text("")
    assert reading.load(tmp_path).problems == ["records: not read: Not a directory"]


def test_torn_at_every_byte_the_complete_lines_stay(tmp_path):
    lines = [
        json.dumps({**made, "samples_ms": made["samples_ms"][:2], "control_samples_ms": [1.0, 1.0]}).encode() + b"\n"
        for made in (cost_record("ema"), cost_record("non_local"), cost_record("dual"))
    ]
    whole = b"".join(lines)
    complete = [sum(map(len, lines[:count])) - 1 for count in range(1, 4)]
    for length in range(len(lines[0]), len(whole) + 1):
        found = reading.load(folder_of(tmp_path, whole[:length]))
        expected = sum(length >= end for end in complete)
        assert len(found.records) == expected, length
        torn = length not in {*complete, *(end + 1 for end in complete)}
        assert len(found.problems) == torn, length


finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), st.just("ok"),
    st.lists(st.one_of(st.integers(-2, 3), st.floats(), st.none(), st.text(max_size=2)), max_size=5),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
sound = st.sampled_from([cost_record("ema"), accuracy_record("ema"), cost_record("dual", status="error", reason="x")])


def _accepts(check, record):
    try:
        check(record)
    except ValueError:
        return False
    return True


def _whole_schema(record):
    """What validation means, without the quick way."""
    schema._check_finite(record)
    try:
        schema._validator()(record)
    except schema.fastjsonschema.JsonSchemaValueException as error:
        raise ValueError from error


@settings(max_examples=400, deadline=None)
@given(
    record=sound,
    changes=st.dictionaries(
        st.sampled_from(sorted({*schema._schema()["properties"], "network.x", "recipe.y", "else"} - {"protocol"})),
        values,
        max_size=3,
    ),
    twice=st.booleans(),
)
def test_the_quick_way_lets_pass_what_the_schema_lets_pass(record, changes, twice):
    """Equal verdicts whatever was seen before: also for a second record, whose kind has been learnt."""
    changed = {**record, **changes}
    known = Familiar(schema._schema()["properties"])
    known.learn(record)
    if twice and _accepts(_whole_schema, changed):
        known.learn(changed)
    assert not known.knows(changed) or _accepts(_whole_schema, changed)
    assert _accepts(schema.validate, changed) == _accepts(_whole_schema, changed)


def test_the_quick_way_knows_a_record_of_the_same_kind():
    known = Familiar(schema._schema()["properties"])
    assert not known.knows(RECORD)
    known.learn(RECORD)
    other = {**RECORD, "identity": "2" * 24, "macs": 5, "samples_ms": [1, 2.5], "started": "2026-05-05T00:00:00.1Z"}
    assert known.knows(other)
    for name, value in {
        "identity": "2", "macs": -1, "samples_ms": [0.0], "wall_s": math.inf, "started": "x", "mode": "training",
    }.items():  # fmt: skip
        assert not known.knows({**other, name: value}), name


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, len(LINE)))
def test_whatever_bytes_a_line_holds_parsing_ends_in_a_record_or_a_sentence(noise, position):
    for line in (noise, LINE[:position] + noise + LINE[position:], LINE[:position] + noise):
        with contextlib.suppress(ValueError):
            assert schema.parse(line)["protocol"] == schema.PROTOCOL


def test_many_records_take_the_quick_way_and_few_tables(tmp_path, monkeypatch):
    """What makes 100,000 records quick, without a clock: few validations and tables, one figure of a kind."""
    asked = []
    full = schema._validator()
    monkeypatch.setattr(schema, "_validator", lambda: lambda record: asked.append(1) or full(record))
    known = Familiar(schema._schema()["properties"])
    monkeypatch.setattr(schema, "_familiar", lambda: known)
    monkeypatch.setattr(writing, "MOST_TABLES", 3)
    many_records.write_many(tmp_path, 2000)
    found = records.load(tmp_path)
    assert len(found.records) == 2000
    assert found.problems == []
    assert len(asked) < 1100
    written = report.write_report(found.records, records.load_environments(tmp_path), tmp_path)
    assert len(written.frames) == 3
    assert {file.stem.partition("-")[0] for file in tmp_path.glob("*.png")} == {"trade", "seeds"}
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert any("15 of 18 settings of cost stand in comparison.csv alone" in line for line in written.skipped)
    assert len((tmp_path / "comparison.csv").read_text().splitlines()) == 1 + 18 * 50


@pytest.mark.full
def test_a_hundred_thousand_records_load_and_report(tmp_path):
    """Generous, because machines of tests are busy; docs/measuring.md has the figure of a quiet one."""
    many_records.write_many(tmp_path, 100_000)
    began = time.process_time()
    found = records.load(tmp_path)
    report.write_report(found.records, records.load_environments(tmp_path), tmp_path)
    assert len(found.records) == 100_000
    assert time.process_time() - began < 40


def mounted(path, options):
    """A small file system in memory at `path`; skips where this process may not mount one."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no command mount here")
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    return path


@pytest.fixture
def mount(tmp_path):
    """Mounts below the test's folder, and unmounts in the end."""
    made = []

    def make(options):
        made.append(mounted(tmp_path / f"disk{len(made)}", options))
        return made[-1]

    yield make
    for path in made:
        subprocess.run(["umount", str(path)], check=False)


def test_a_full_disk_ends_with_what_was_measured_kept(mount):
    disk = mount("size=64k")
    kept = []

    def fill(writer):
        for number in range(1000):
            writer.write({**RECORD, "identity": f"{number:024x}"})
            kept.append(number)

    with records.RecordWriter(disk) as writer, pytest.raises(records.UsageError, match="No space left on device"):
        fill(writer)
    written = len(kept)
    assert written > 10
    found = records.load(disk)
    assert len(found.records) == written
    assert found.problems == []
    with pytest.raises(records.UsageError, match="No space left on device"):
        report.write_report(found.records, {}, disk)
    assert list(disk.glob(".*")) == []
    assert len(records.load(disk).records) == written


def test_a_disk_that_may_not_be_written_is_one_sentence(mount):
    with pytest.raises(records.UsageError, match="Read-only file system"):
        records.RecordWriter(mount("ro"))
