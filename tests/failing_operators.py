"""Operators that fail in every way a run has to survive; `tests/test_runner.py` measures them beside sound ones."""

import os
import resource
import signal
import time
import weakref
from pathlib import Path
from typing import ClassVar

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


class Limited(_Failing):
    """Asks for more address space than the limit of its process lets it have."""

    spec = _spec("limited")

    def fail(self):
        if self.channels != 8:
            return
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), before[1]))
        try:
            torch.ones(256 << 20, dtype=torch.float32)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


class DeviceFull(_Failing):
    """What CUDA says when its memory is full, while a tensor hangs on the frame that raised."""

    spec = _spec("device_full")
    held: ClassVar = []

    def fail(self):
        if self.channels == 8:
            lost = torch.ones(1 << 20)
            type(self).held[:] = [weakref.ref(lost)]
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB")


class StartsClean(_Failing):
    """Sound where nothing is left of `DeviceFull` in its process."""

    spec = _spec("starts_clean")

    def fail(self):
        if any(reference() is not None for reference in DeviceFull.held):
            raise ArithmeticError("memory of the trial before is still held")


class DeviceLost(_Failing):
    """An error after which CUDA does nothing more in its process."""

    spec = _spec("device_lost")
    processes: ClassVar = []

    def fail(self):
        if self.channels == 8:
            type(self).processes.append(os.getpid())
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


class AfterLost(_Failing):
    """Sound in a process that has not lost its device."""

    spec = _spec("after_lost")

    def fail(self):
        if os.getpid() in DeviceLost.processes:
            raise ArithmeticError("the process of the lost device goes on")


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
