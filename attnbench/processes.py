"""Where worker processes come from: a server that has torch imported, started before anybody else imports it."""

from __future__ import annotations

import functools
import multiprocessing
from multiprocessing import forkserver
from typing import Any

# torch loads its compiler, a second's work, when operations are first followed
_PRELOAD = ["attnbench.worker", "torch._dynamo"]


@functools.cache
def context() -> Any:
    """Processes that start from a server with torch imported, where the system has one: importing costs seconds."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(_PRELOAD)
    return made


def warm_up() -> None:
    """Starts the server and does not wait for it: it imports on one core while the parent does on another."""
    if context().get_start_method() == "forkserver":
        forkserver.ensure_running()
