"""What an operator costs: parameters and MACs (`cost`), peak memory (`memory`), latency (`latency`)."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

from attnbench import reading


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Collects garbage once and keeps the cyclic collector from running inside the block.

    When it runs depends on how many objects the process has made: it would strike one operator and not
    another.
    """
    gc.collect()
    with reading.paused_collector():
        yield
