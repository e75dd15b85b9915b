"""Checkpoints: a run that is killed anywhere ends like one that was not, and a file that does not fit is named."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import training_cases
from training_cases import RECIPE, Stripes, segmentor

from attnbench.errors import UsageError
from attnbench.training import Checkpoints, fit

CASES = Path(training_cases.__file__)


def start(folder, every=1):
    command = [sys.executable, str(CASES), "checkpoints", str(folder), str(every)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    random.seed(1)
    training_cases.train_with_checkpoints(folder, 7)
    return torch.load(folder / "end.pt", weights_only=True)


def expect_same_end(folder, undisturbed):
    found = torch.load(folder / "end.pt", weights_only=True)
    assert torch.equal(found["losses"], undisturbed["losses"])
    assert found["weights"].keys() == undisturbed["weights"].keys()
    assert all(torch.equal(found["weights"][key], value) for key, value in undisturbed["weights"].items())


def test_a_run_killed_at_any_moment_ends_in_the_same_weights(tmp_path, undisturbed):
    draw = np.random.default_rng(int.from_bytes(os.urandom(4)))
    killed = 0
    for _ in range(3):
        process = start(tmp_path)
        # the kill falls on any place of an iteration: into a step, into the writing of a file, between two
        for _ in range(int(draw.integers(1, 10))):
            process.stdout.readline()
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    process = start(tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert killed > 0
    expect_same_end(tmp_path, undisturbed)
    files = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert [name[:8] for name in files] == ["00000039", "00000040"]


def test_sigterm_leaves_a_checkpoint_and_ends_with_130(tmp_path, undisturbed):
    process = start(tmp_path, every=1000)
    process.stdout.readline()
    process.terminate()
    process.communicate()
    assert process.returncode == 130
    (left,) = (tmp_path / "checkpoints").iterdir()
    assert 1 <= int(left.name[:8]) < 40
    training_cases.train_with_checkpoints(tmp_path, 1000)
    expect_same_end(tmp_path, undisturbed)


def trained(folder, recipe=RECIPE, belongs=("recipe", "short"), stop=None, operator="conv3x3", every=1, device="cpu"):
    model = segmentor(operator)
    checkpoints = Checkpoints(folder, dict([belongs]), every=every)
    losses = fit(model, Stripes(), recipe, seed=0, device=device, checkpoints=checkpoints, stop=stop)
    return losses, model.state_dict()


def stopped_after(count):
    asked = iter([False] * (count - 1) + [True])
    return lambda: next(asked)


HERE = [
    ("cpu", replace(RECIPE, optimizer="adamw", learning_rate=0.01)),
    ("cpu", replace(RECIPE, accumulate=2, channels_last=False)),
    ("cpu", replace(RECIPE, amp="bfloat16", batch_norm="shared")),
]
if torch.cuda.is_available():
    half = replace(RECIPE, amp="float16", accumulate=2, clip_gradient_norm=1.0, batch_norm="shared", learning_rate=0.03)
    HERE += [("cuda", RECIPE), ("cuda", half), ("cuda", replace(half, optimizer="adamw"))]


@pytest.mark.parametrize(("device", "recipe"), HERE)
def test_every_state_is_resumed(tmp_path, device, recipe):
    expected = fit(model := segmentor(), Stripes(), recipe, seed=0, device=device)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, recipe, stop=stopped_after(2), device=device)
    losses, weights = trained(tmp_path, recipe, device=device)
    assert losses == expected
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


def test_another_machine_may_go_on_and_is_named_beside_the_first(tmp_path, caplog):
    def sitting(name, stop=None):
        checkpoints = Checkpoints(tmp_path, {"recipe": "short"}, every=1, sitting=name)
        fit(segmentor(), Stripes(), RECIPE, seed=0, device="cpu", checkpoints=checkpoints, stop=stop)
        return checkpoints.sittings

    for name in ("machine a", "machine a", "machine b"):
        with pytest.raises(KeyboardInterrupt):
            sitting(name, stopped_after(1))
    assert "is of machine a; the run goes on with machine b" in caplog.text
    assert sitting("machine c") == ["machine a", "machine b", "machine c"]


def test_a_torn_file_falls_back_to_the_one_before(tmp_path, caplog):
    expected = trained(tmp_path)
    latest, before = Checkpoints(tmp_path, {}, every=1).present()
    assert (latest.name[:8], before.name[:8]) == ("00000003", "00000002")
    latest.write_bytes(latest.read_bytes()[:-1])
    again = trained(tmp_path)
    assert again[0] == expected[0]
    assert all(torch.equal(again[1][key], value) for key, value in expected[1].items())
    assert "cut short or damaged" in caplog.text
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UsageError, match="expected a whole file, got 2 cut short or damaged"):
        trained(tmp_path)


def test_a_checkpoint_of_another_run_is_named(tmp_path):
    trained(tmp_path)
    with pytest.raises(UsageError, match="with recipe 'long', got 'short'"):
        trained(tmp_path, belongs=("recipe", "long"))
    with pytest.raises(UsageError, match="with operator 'ema', got None"):
        trained(tmp_path, belongs=("operator", "ema"))
    with pytest.raises(UsageError, match="expected weights of this architecture, got"):
        trained(tmp_path, operator="ema")


def test_checkpoints_are_tensors_and_plain_data_and_leave_no_other_file(tmp_path):
    (tmp_path / "00000001.pt.1-aaaaaa.partial").write_bytes(b"left by a kill")
    trained(tmp_path, every=2)
    files = Checkpoints(tmp_path, {}, every=1).present()
    assert [path.name[:8] for path in files] == ["00000003", "00000002"]
    assert set(tmp_path.iterdir()) == set(files)
    loaded = torch.load(files[0], weights_only=True)
    assert loaded.keys() == {
        *("format", "belongs", "belongs_hash", "iteration", "model", "optimizer", "scaler", "random", "losses"),
        "sittings",
    }
    assert len(loaded["random"]) == 1 and loaded["random"][0].keys() == {"torch", "cuda", "python", "numpy"}


def test_what_is_finished_is_not_trained_again(tmp_path):
    first = trained(tmp_path)
    told = []
    model = segmentor()
    checkpoints = Checkpoints(tmp_path, {"recipe": "short"}, every=1)
    losses = fit(model, Stripes(), RECIPE, seed=0, device="cpu", checkpoints=checkpoints, progress=told.append)
    assert losses == first[0] and told == []
    assert all(torch.equal(value, first[1][key]) for key, value in model.state_dict().items())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="expected a folder that can be written"):
        trained(tmp_path / "file")
