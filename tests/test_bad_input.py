"""Input of every kind of wrong: what a command says to it is one line and exit code 2, never a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from record_factory import accuracy_record, cost_record

from attnbench.cli import compare, evaluate, operators_page, report
from attnbench.errors import UsageError

SCRIPTS = Path(__file__).parents[1] / "scripts"
QUICKLY = {"deadline": None, "suppress_health_check": list(HealthCheck)}

words = st.one_of(
    st.text(max_size=8),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(["", ",", "x", "65x", "x65", "0x0", "9x9", "1/2", "2/1", "0/3", "--", "-1", "1e400", "nan", "\0"]),
    st.sampled_from(["ema", "emaa", "all", "float32", "forward", "operator", "cpu", "cuda", "camvid", "context", "é"]),
    st.sampled_from([".", "/", "/dev/null", "/nowhere", "x.toml", "y.py:X", "y.py", ":"]),
)  # fmt: skip
options = st.sampled_from(
    [
        "--operators", "--operator", "--preset", "--only", "--device", "--sizes", "--channels", "--batch", "--dtype",
        "--modes", "--levels", "--seconds", "--dataset", "--data-root", "--image-size", "--backbone", "--head",
        "--backbone-weights", "--iterations", "--seeds", "--shard", "--against", "--margin-latency", "--margin-memory",
        "--margin-elsewhere", "--margin-accuracy", "--operatrs", "-x",
    ]
)  # fmt: skip
given_options = st.lists(
    st.one_of(st.tuples(options, words), st.tuples(options), st.tuples(words)), min_size=1, max_size=4
).map(lambda parts: [word for part in parts for word in part])


def ends_properly(main, arguments):
    """Whether `main` returns a code, or complains in the two ways that become one line and exit code 2."""
    try:
        return main(arguments) in (0, 1)
    except UsageError as error:
        return bool(str(error).strip())
    except SystemExit as error:
        return error.code in (0, 2)


@settings(max_examples=500, **QUICKLY)
@given(arguments=given_options)
@example(arguments=["--backbone-weights", "\0"])
def test_arguments_of_compare(arguments):
    """The last word is --dry-run, so that what happens to be valid measures nothing."""
    assert ends_properly(compare.main, ["--operators", "conv1x1", *arguments, "--dry-run"])


@settings(max_examples=100, **QUICKLY)
@given(arguments=st.lists(words, max_size=4))
@pytest.mark.parametrize("command", [report, evaluate], ids=lambda command: command.PROG)
def test_arguments_of_the_other_commands(command, arguments, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    safe = [word for word in arguments if word not in (".", "/")]
    assert ends_properly(command.main, ["--checkpoint", *safe, "--dataset", "context"] if command is evaluate else safe)


plain = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text("abcxyz 0,\"\\", max_size=5)),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
keys = {
    "": ["operators", "device", "operator_files", "cost", "accuracy", "coste"],
    "cost": ["sizes", "channels", "batches", "dtypes", "modes", "levels", "num_classes", "in_channels", "timeout"],
    "accuracy": ["dataset", "seeds", "jobs", "image_size", "train_split", "timeout", "recipe"],
    "accuracy.recipe": ["optimizer", "iterations", "crop_size", "scale_range", "learning_rate", "amp"],
    "cost.network": ["backbone", "feature_stages", "multi_grid", "output_stride", "slot_channels", "stem"],
}


def as_toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else str(value)


lines = st.sampled_from(sorted(keys)).flatmap(
    lambda table: st.dictionaries(st.sampled_from(keys[table]), plain, max_size=2).map(
        lambda values: (f"[{table}]\n" if table else "") + "".join(f"{k} = {as_toml(v)}\n" for k, v in values.items())
    )
)


@settings(max_examples=250, **QUICKLY)
@given(text=st.one_of(lines, lines.map(lambda text: text[: len(text) // 2]), st.text(max_size=30)))
def test_presets(tmp_path_factory, text):
    """Files of TOML, nearly TOML and anything."""
    path = tmp_path_factory.mktemp("preset") / "p.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    arguments = ["--preset", str(path), "--operators", "conv1x1", "--dry-run"]
    assert ends_properly(compare.main, arguments)


sides = st.integers(-2, 10**19)


@settings(max_examples=100, **QUICKLY)
@given(
    height=sides, width=sides, channels=sides, batch=sides,
    operator=st.sampled_from(["ema", "criss_cross", "interlaced", "conv3x3"]),
    level=st.sampled_from(["core", "head", "network"]),
)  # fmt: skip
def test_shapes(height, width, channels, batch, operator, level):
    arguments = [
        "--operators",
        operator,
        "--sizes",
        f"{height}x{width}",
        "--channels",
        str(channels),
        "--levels",
        level,
    ]
    assert ends_properly(compare.main, [*arguments, "--batch", str(batch), "--only", "cost", "--dry-run"])


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_infinity=False), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip
sound = st.sampled_from([cost_record("ema"), cost_record("conv3x3"), accuracy_record("ema")])
changed = st.tuples(sound, st.dictionaries(st.sampled_from(sorted(cost_record("ema"))), json_values, max_size=2))
records_lines = st.one_of(
    st.binary(max_size=40),
    json_values.map(lambda value: json.dumps(value).encode()),
    changed.map(lambda pair: json.dumps({**pair[0], **pair[1]}).encode()),
)


@settings(max_examples=150, **QUICKLY)
@given(content=st.lists(records_lines, max_size=4), environment=st.one_of(st.binary(max_size=20), json_values))
def test_records(tmp_path_factory, content, environment):
    """A report of whatever lies in the folder; what the schema lets pass can be drawn, too."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "records").mkdir()
    (folder / "environments").mkdir()
    (folder / "records" / "x.jsonl").write_bytes(b"\n".join(content))
    data = environment if isinstance(environment, bytes) else json.dumps(environment).encode()
    (folder / "environments" / "0123456789abcdef.json").write_bytes(data)
    assert report.main([str(folder)]) == 0


def test_operators_page_into_a_folder_that_is_none(tmp_path):
    assert ends_properly(operators_page.main, ["--output", str(tmp_path / "none" / "page.md")])


BAD = [
    ["--operatrs", "ema"], ["ema"], ["--sizes", "65x"], ["--sizes", ""], ["--channels", "0"], ["--channels", "1e3"],
    ["--batch", "-1"], ["--seconds", "soon"], ["--seeds", "none"], ["--iterations", "1.5"], ["--only", "costs"],
    ["--preset", "acuracy"], ["--preset", "nowhere.toml"], ["--preset", "/"], ["--dtype", "float3"],
    ["--levels", "operater"], ["--modes", "backward"], ["--shard", "9/8"], ["--margin-latency", "-1"],
    ["--image-size", "\u00e9"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_processes(arguments):
    command = [sys.executable, str(SCRIPTS / "compare.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("compare.py: error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
