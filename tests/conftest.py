"""Every test leaves the process as it found it: no profiler, no thread of ours, no variable of the environment."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

# Here and not in a fixture: read when torch is imported, and inherited by every process a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
THREAD_GRACE_S = 5.0
OUR_VARIABLES = ("HARNESS_RUN_NAME", "COMPOSER_RUN_NAME", "RUN_NAME", "HARNESS_ROOT")


def _our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("harness")]


def _profiler_is_active() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch._C._autograd._profiler_enabled())


@pytest.fixture(autouse=True)
def _leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = _environment()
    for name in OUR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    yield
    monkeypatch.undo()
    after = _environment()
    leaked = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not leaked, f"environment variables left behind: {sorted(leaked)}"
    assert not _profiler_is_active(), "a profiler was left active"
    deadline = time.monotonic() + THREAD_GRACE_S
    while _our_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _our_threads(), f"threads left behind: {_our_threads()}"


def _environment() -> dict[str, str]:
    """Variables of others left out: torch sets some when it compiles or profiles, scikit-learn when it is imported."""
    foreign = ("PYTEST_", "TORCH", "TRITON", "KMP_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


@pytest.fixture
def no_file_larger_than() -> Callable[[int], AbstractContextManager[None]]:
    """Gives a block in which the disk looks full: a write gets through in part, and the next one not at all."""

    @contextmanager
    def limited(size_bytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
