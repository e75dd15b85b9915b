"""Fingerprint, its hash, and the commit of a checkout."""

import getpass
import json
import re
import socket
import subprocess
from pathlib import Path

import pytest
import torch

import attnbench
from attnbench import environment
from attnbench.environment import commit, commit_of, environment_hash, fingerprint
from attnbench.errors import UsageError

SCHEMA = json.loads((Path(attnbench.__file__).parent / "records.schema.json").read_text())["properties"]


def strings(value):
    if isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def test_fingerprint_is_plain_data_and_repeats():
    environment = fingerprint("cpu")
    assert json.loads(json.dumps(environment)) == environment == fingerprint("cpu")
    assert environment["torch"] == torch.__version__
    assert environment["cpu"]["available_cores"] >= 1
    assert environment["cpu"]["memory_gib"] >= 1
    assert environment["torch_build"]
    assert "cuda" not in environment


def test_fingerprint_follows_threads_and_precision():
    before = environment_hash(fingerprint("cpu"))
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(threads + 1)
        with_threads = environment_hash(fingerprint("cpu"))
        torch.set_float32_matmul_precision("high" if precision != "high" else "highest")
        with_precision = environment_hash(fingerprint("cpu"))
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    assert len({before, with_threads, with_precision}) == 3
    assert environment_hash(fingerprint("cpu")) == before


def test_fingerprint_names_no_host_user_or_path():
    found = list(strings(fingerprint("cpu")))
    secrets = {socket.gethostname(), getpass.getuser()}
    assert not secrets & set(found)
    assert not [value for value in found if "/" in value or "\\" in value]


@pytest.mark.parametrize("device", ["tpu", "mps", "meta", ""])
def test_unknown_device_is_a_usage_error(device):
    with pytest.raises(UsageError, match="fingerprint: expected"):
        fingerprint(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_missing_cuda_device_is_a_usage_error():
    with pytest.raises(UsageError, match="expected a CUDA device"):
        fingerprint("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_fingerprint():
    described = fingerprint("cuda")["cuda"]
    assert described["name"] == torch.cuda.get_device_name()
    assert described["memory_gib"] >= 1


def test_hash_depends_on_content_alone():
    assert environment_hash({"a": 1, "b": {"c": 2, "d": 3}}) == environment_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert environment_hash({"a": 1}) != environment_hash({"a": 2})
    assert re.fullmatch(SCHEMA["environment"]["pattern"], environment_hash(fingerprint("cpu")))


def test_commit_fits_the_schema():
    assert re.fullmatch(SCHEMA["commit"]["pattern"], commit())
    assert commit() is commit()


def git(folder, *arguments):
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def checkout(tmp_path):
    for name in ("package/module.py", "results/table.md", "README.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("one\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    return tmp_path


def test_commit_of_a_clean_checkout(checkout):
    head = git(checkout, "rev-parse", "HEAD").strip()
    assert commit_of(checkout / "package/module.py") == head
    (checkout / "results/table.md").write_text("two\n")
    (checkout / "untracked.txt").write_text("two\n")
    assert commit_of(checkout / "package/module.py") == head


@pytest.mark.parametrize("staged", [False, True])
def test_commit_of_a_changed_checkout(checkout, staged):
    (checkout / "README.md").write_text("two\n")
    if staged:
        git(checkout, "add", "README.md")
    assert commit_of(checkout / "package/module.py") == git(checkout, "rev-parse", "HEAD").strip() + "+changes"


def test_untracked_package_inside_a_checkout_has_no_commit(checkout):
    installed = checkout / "site/package/module.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("one\n")
    assert commit_of(installed) == "unknown"


def test_no_checkout_has_no_commit(tmp_path):
    assert commit_of(tmp_path / "package/module.py") == "unknown"


def test_no_git_has_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit_of(checkout / "package/module.py") == "unknown"


def test_gpu_state_is_what_the_driver_tells(monkeypatch):
    asked = []

    def answer(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="1980, 2619, [N/A], 41\n")

    monkeypatch.setattr(subprocess, "run", answer)
    state = environment.gpu_state("cuda:1")
    assert state == {"gpu_clock_mhz": 1980.0, "gpu_memory_clock_mhz": 2619.0, "gpu_temperature_c": 41.0}
    assert "--id=1" in asked[0]
    assert not any("lock-gpu-clocks" in part or "-lgc" in part for part in asked[0])


def test_gpu_state_of_a_cpu_and_without_a_driver_is_empty(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", absent)
    assert environment.gpu_state("cpu") == {}
    assert environment.gpu_state("cuda") == {}
