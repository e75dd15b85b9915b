import gc
import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the processor among them: threads of two that wait for each other take three times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

from operators import registry


@pytest.fixture(autouse=True, scope="session")
def imports_are_not_garbage():
    """What imports and collection made leaves the collector's sight: measuring collects before each step."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory):
    """What a check of data remembers goes nowhere that outlives the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="module")
def operators_of_its_own():
    """A file of an operator that one module loads takes no name from the next: workers run them in any order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", dict(registry._registered))
        yield
