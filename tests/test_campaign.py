"""Faults injected for real: runs killed at random moments, runs that meet in one folder, plans in parts."""

import json
import random
import shutil
import time

import cheap_runs
import pytest

from attnbench import planning, records, report


def run_to_the_end(experiment, folder):
    process = cheap_runs.start(experiment, planning.plan(experiment), folder)
    process.join(timeout=300)
    assert process.exitcode == 0
    return cheap_runs.table(folder)


@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.full)])
def test_killed_at_random_moments_and_resumed(tmp_path, monkeypatch, kills):
    """Each kill meets a run at work; what had ended by then stays as it was, and nothing is measured twice."""
    cheap_runs.warm(monkeypatch)
    moments = random.Random(kills)
    experiment = cheap_runs.cheap(2 * kills)
    trials = planning.plan(experiment)
    killed, kept = 0, {}
    while killed < kills:
        process = cheap_runs.start(experiment, trials, tmp_path / "killed")
        time.sleep(moments.uniform(0.0, 0.5))
        killed += process.is_alive()
        process.kill()
        process.join()
        if (tmp_path / "killed" / "records").is_dir():
            now = cheap_runs.complete_lines(tmp_path / "killed")
            assert all(now[identity] == lines for identity, lines in kept.items())
            kept = now
        if len(kept) == len(trials):
            # Faster than the moments allow for: what is left of the kills meets a new plan.
            shutil.rmtree(tmp_path / "killed")
            kept = {}
    assert run_to_the_end(experiment, tmp_path / "killed") == run_to_the_end(experiment, tmp_path / "whole")
    lines = cheap_runs.complete_lines(tmp_path / "killed")
    assert {len(found) for found in lines.values()} == {1}
    assert all(lines[identity] == found for identity, found in kept.items())
    assert len(lines) == len(trials)


def test_two_runs_into_one_folder_neither_lose_nor_mix(tmp_path, monkeypatch):
    """Both measure everything, side by side; of each trial the earlier record counts."""
    cheap_runs.warm(monkeypatch)
    experiment = cheap_runs.cheap(4)
    trials = planning.plan(experiment)
    processes = [cheap_runs.start(experiment, trials, tmp_path / "both") for _ in range(2)]
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode == 0
    assert len(list((tmp_path / "both" / "records").iterdir())) == 2
    found = records.load(tmp_path / "both")
    assert found.problems == []
    assert len(found.records) == len(trials)
    lines = cheap_runs.complete_lines(tmp_path / "both")
    twice = {identity: measured for identity, measured in lines.items() if len(measured) == 2}
    assert twice
    starts = {record["identity"]: record["started"] for record in found.records}
    for identity, measured in twice.items():
        assert starts[identity] == min(json.loads(line)["started"] for line in measured)
    assert cheap_runs.table(tmp_path / "both") == run_to_the_end(experiment, tmp_path / "alone")


def test_eight_shards_make_the_whole(tmp_path, monkeypatch):
    """Folders of eight shards, copied into one, give the table of the run that was not divided."""
    cheap_runs.warm(monkeypatch)
    experiment = cheap_runs.cheap(4)
    trials = planning.plan(experiment)
    shards = [planning.shard(trials, part, 8) for part in range(1, 9)]
    assert sorted(trials.index(trial) for shard in shards for trial in shard) == list(range(len(trials)))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    for number, shard in enumerate(shards):
        process = cheap_runs.start(experiment, shard, tmp_path / str(number))
        process.join(timeout=300)
        assert process.exitcode == 0
        shutil.copytree(tmp_path / str(number), tmp_path / "merged", dirs_exist_ok=True)
    whole = run_to_the_end(experiment, tmp_path / "whole")
    assert cheap_runs.table(tmp_path / "merged") == whole
    assert len(whole) == len(trials)
    columns = ["operator", "params", "macs", "peak_mib_forward", "status_forward"]
    merged, undivided = (
        [
            sorted(frame.rows[columns].to_numpy().tolist())
            for frame in report.comparison_frames(records.load(tmp_path / name).records, {})
        ]
        for name in ("merged", "whole")
    )
    assert merged == undivided
