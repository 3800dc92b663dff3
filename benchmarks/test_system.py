"""What the sampler of system metrics costs: CPU time of a sample, and of its thread while something trains beside it.

An idle process would flatter it: between two samples a training step throws its code and data out of the caches.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from recorded import clock, record
from torch.utils.data import DataLoader, TensorDataset
from windows import transformer_step

from harness.capture.host import default_source
from harness.capture.system import SystemSample, SystemSampler
from harness.units import NS_PER_S

WARM_S = 0.3
"""Until the first sample, which the start of the thread takes, is over."""
ROUNDS = 5
NUM_WORKERS = 8


@pytest.mark.benchmark(group="system", timer=time.thread_time)
@pytest.mark.parametrize("what", ["all-sources", "in-a-window"])
def test_one_sample(benchmark: Any, what: str) -> None:
    """With warm caches. Once a second all sources are read, in a window in between only those that move as fast."""
    beat_ns = NS_PER_S if what == "all-sources" else NS_PER_S // 1000
    beats = itertools.count(NS_PER_S, beat_ns)
    taken: list[SystemSample] = []
    sampler = SystemSampler(on_sample=taken.append, source=default_source(monotonic_ns=lambda: next(beats)))
    benchmark.pedantic(sampler.sample, rounds=50, iterations=10, warmup_rounds=1)
    assert sampler.health.errors == 0
    assert "process_cpu_pct" in taken[-1].values
    assert ("load_1min" in taken[-1].values) == (what == "all-sources")


@pytest.mark.benchmark(group="system", timer=clock)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores: they only wait
@pytest.mark.parametrize(
    ("interval_s", "num_workers"), [(1.0, 0), (0.05, 0), (1.0, NUM_WORKERS)], ids=["1s", "50ms", "8-workers"]
)
def test_sampler(benchmark: Any, interval_s: float, num_workers: int) -> None:
    """CPU time of the thread in each second, beside a transformer that trains; with workers, at 1 s."""
    torch.set_num_threads(1)
    step = transformer_step()
    with loader_workers(num_workers):
        rows = [measure_thread(interval_s, step, num_workers) for _ in range(ROUNDS)]
    left = iter(rows)
    record(benchmark, lambda: next(left), value="cpu_ms", rounds=len(rows))


def measure_thread(interval_s: float, step: Callable[[], None], num_workers: int) -> Mapping[str, float]:
    """Train while the sampler runs; its CPU time in each second, and for each sample."""
    taken: list[SystemSample] = []
    sampler = SystemSampler(interval_s=interval_s, on_sample=taken.append)
    sampler.start()
    (thread,) = (one for one in threading.enumerate() if one.name == "harness-system")
    assert thread.ident is not None
    cpu_clock = time.pthread_getcpuclockid(thread.ident)
    train_for(WARM_S, step)
    before, begin_ns, begin_cpu_ns = len(taken), time.monotonic_ns(), time.clock_gettime_ns(cpu_clock)
    train_for(2.0, step)
    cpu_ns, wall_ns, num_samples = (
        time.clock_gettime_ns(cpu_clock) - begin_cpu_ns,
        time.monotonic_ns() - begin_ns,
        len(taken) - before,
    )
    sampler.close()
    assert sampler.health.errors == 0
    assert num_samples >= 2
    assert {one.values.get("num_workers", num_workers) for one in taken} == {num_workers}
    return {"cpu_ms": cpu_ns / 1e6 / (wall_ns / NS_PER_S), "sample_us": cpu_ns / 1e3 / num_samples}


def train_for(length_s: float, step: Callable[[], None]) -> None:
    """Train on this thread."""
    end = time.monotonic() + length_s
    while time.monotonic() < end:
        step()


@contextmanager
def loader_workers(number: int) -> Iterator[None]:
    """A real DataLoader's workers; they have filled their queues and wait."""
    if number == 0:
        yield
        return
    loader = DataLoader(TensorDataset(torch.zeros(10_000, 8)), batch_size=8, num_workers=number)
    batches = iter(loader)
    next(batches)
    yield
    del batches  # ends them
