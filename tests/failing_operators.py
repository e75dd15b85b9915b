"""Operators that fail in every way a run has to survive; `tests/test_runner.py` measures them beside sound ones."""

import os
import signal
import time

import torch

from operators.interface import AttentionOperator, OperatorSpec, Source


def _spec(name):
    source = Source("None", "none", 2026, "https://example.org")
    return OperatorSpec(name=name, title=name, source=source, reach="pixel", growth=0.0)


class _Failing(AttentionOperator):
    def forward(self, x):
        self.expect_map(x)
        self.fail()
        return x * 1

    def macs(self, height, width):
        return 0


class Crashing(_Failing):
    spec = _spec("crashing")

    def fail(self):
        os.kill(os.getpid(), signal.SIGSEGV)


class Killed(_Failing):
    spec = _spec("killed")

    def fail(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Hanging(_Failing):
    spec = _spec("hanging")

    def fail(self):
        time.sleep(3600)


class Greedy(_Failing):
    spec = _spec("greedy")

    def fail(self):
        torch.empty(2**62, dtype=torch.uint8)


class Raising(_Failing):
    spec = _spec("raising")

    def fail(self):
        raise ArithmeticError("seventeen")


class LateRaising(_Failing):
    """Raises only once it is sampled, after checks, counting and memory."""

    spec = _spec("late_raising")
    calls = 0

    def fail(self):
        if self.channels == 8:
            type(self).calls += 1
            if type(self).calls > 5:
                raise ArithmeticError("late")


class WrongMacs(_Failing):
    spec = _spec("wrong_macs")

    def fail(self):
        pass

    def macs(self, height, width):
        return height * width * 3
