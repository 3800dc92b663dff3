"""Capture windows for the benchmarks: the harness's, and the same steps recorded with torch.profiler by hand."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from harness.capture.options import ProfileOptions
from harness.capture.recipe import Recipe
from harness.capture.schedule import Schedule
from harness.capture.window import Capture

NUM_STEPS = 3
Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowTimes:
    """One window of the harness. CPU time of the training thread in ms, unless said."""

    open_ms: float
    """Building and starting the profiler."""
    close_ms: float
    """From the end of the last step's own work until the next step may begin."""
    close_wall_ms: float
    """The same on the wall clock."""
    export_wall_ms: float
    """Of that, torch's export of the raw trace."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchTimes:
    """One window by hand. CPU time of the training thread in ms."""

    open_ms: float
    """Building and starting the profiler."""
    stop_ms: float
    """`stop()`, at the end of `with`."""
    export_ms: float
    """`export_chrome_trace()`, uncompressed."""


def transformer_step() -> Step:
    """A step of a small transformer, about 1 MB of trace. It has been run once."""
    layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = torch.randn(8, 64, 128)

    def step() -> None:
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return step


def torch_window(step: Step, path: Path, *, num_steps: int = NUM_STEPS) -> TorchTimes:
    """Record a few steps by hand, into an uncompressed trace."""
    begin = time.thread_time_ns()
    # `with`, as torch counts a profiler that was only stopped as one that may go on, and the harness then looks for it.
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        opened = time.thread_time_ns()
        for _ in range(num_steps - 1):
            step()
            profiler.step()
        step()
        ended = time.thread_time_ns()
    stopped = time.thread_time_ns()
    profiler.export_chrome_trace(str(path))
    exported = time.thread_time_ns()
    # The object holds itself, with all events: else whoever opens the next window would pay for letting go of them.
    del profiler
    gc.collect()
    return TorchTimes(
        open_ms=(opened - begin) / 1e6, stop_ms=(stopped - ended) / 1e6, export_ms=(exported - stopped) / 1e6
    )


def harness_window(step: Step, folder: Path) -> WindowTimes:
    """Record as many steps as a run does, into an empty folder, and wait until the trace is finished."""
    capture = make_capture(folder)
    begin = time.thread_time_ns()
    capture.start(1)
    opened = time.thread_time_ns()
    for number in range(1, NUM_STEPS):
        step()
        capture.on_step_end(number)
    step()
    ended = time.thread_time_ns()
    capture.on_step_end(NUM_STEPS)
    closed = time.thread_time_ns()
    (trace,) = capture.wait()
    assert trace.ok, trace.error
    assert trace.result.profiler_steps == list(range(1, NUM_STEPS + 1))
    health = capture.health()
    return WindowTimes(
        open_ms=(opened - begin) / 1e6,
        close_ms=(closed - ended) / 1e6,
        close_wall_ms=(health["close_ns"] + health["export_ns"]) / 1e6,
        export_wall_ms=health["export_ns"] / 1e6,
    )


def make_capture(folder: Path) -> Capture:
    """A capture whose only window begins with step 1."""
    return Capture(
        Recipe(name="bench", schedule=Schedule(warmup=0, active=NUM_STEPS), profile=ProfileOptions()),
        run_name="bench",
        rank=0,
        world_size=1,
        private_dir=folder,
        trace_path=lambda first: folder / f"rank0.{first:06d}.pt.trace.json.gz",
        system_samples=lambda _from_ns, _to_ns: [],
        device_type="cpu",
        on_window=lambda _opened: None,
    )
