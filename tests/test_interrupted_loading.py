"""A run that is stopped ends its loading processes, too, and says so in one line."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

COMPARE = Path(__file__).parents[1] / "scripts" / "compare.py"


def until(happens, seconds):
    deadline = time.monotonic() + seconds
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.2)
    return happens()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
def test_processes_that_load_end_with_the_run(tmp_path):
    arguments = ["--only", "accuracy", "--operators", "conv1x1", "--iterations", "100000", "--workers", "2"]
    command = [sys.executable, COMPARE, *arguments, "--tensorboard", "--output", tmp_path]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    started: list[psutil.Process] = []

    def loads():
        started[:] = psutil.Process(run.pid).children(recursive=True)
        # resource tracker, server, worker, and two that load
        return len(started) >= 5

    try:
        assert until(loads, 200)
        assert until(lambda: any(path.stat().st_size for path in tmp_path.glob("tensorboard/*/events*")), 60)
        run.send_signal(signal.SIGTERM)
        said = run.communicate(timeout=60)[1]
    finally:
        run.kill()
    assert run.returncode == 130
    assert said.strip() == "compare.py: interrupted; what was measured is kept, and the same command goes on from there"
    assert until(lambda: not any(process.is_running() for process in started), 30)
