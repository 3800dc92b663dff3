"""What a capture window costs the training thread, beside torch.profiler used by hand for the same steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from harness.capture.options import ProfileOptions
from harness.capture.recipe import Recipe
from harness.capture.schedule import Schedule
from harness.capture.window import Capture

NUM_STEPS = 3
ROUNDS = 9


def _transformer() -> Any:
    layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = torch.randn(8, 64, 128)

    def step() -> None:
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _torch_ms(step: Any, folder: Path) -> tuple[float, float]:
    """Stop and export by hand, in ms."""
    profiler = profile(activities=[ProfilerActivity.CPU])
    profiler.start()
    for _ in range(NUM_STEPS):
        step()
        profiler.step()
    begin = time.thread_time_ns()
    profiler.stop()
    stopped = time.thread_time_ns()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    return (stopped - begin) / 1e6, (time.thread_time_ns() - stopped) / 1e6


def _harness_ms(step: Any, folder: Path) -> float:
    """The end of a window of `Capture`, in ms."""
    recipe = Recipe(name="bench", schedule=Schedule(warmup=0, active=NUM_STEPS), profile=ProfileOptions())
    capture = Capture(
        recipe,
        run_name="bench",
        rank=0,
        world_size=1,
        private_dir=folder,
        trace_path=lambda first: folder / f"rank0.{first:06d}.pt.trace.json.gz",
        system_samples=lambda _from_ns, _to_ns: [],
        device_type="cpu",
        on_window=lambda _opened: None,
    )
    capture.start(1)
    for number in range(1, NUM_STEPS):
        step()
        capture.on_step_end(number)
    step()
    begin = time.thread_time_ns()
    capture.on_step_end(NUM_STEPS)
    spent = (time.thread_time_ns() - begin) / 1e6
    assert [trace.ok for trace in capture.wait()] == [True]
    return spent


@pytest.mark.benchmark(group="capture")
@pytest.mark.filterwarnings("ignore:.*warmup.*")
def test_the_end_of_a_window_against_torch_by_hand(benchmark: Any, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    step = _transformer()
    step()
    pairs: list[tuple[tuple[float, float], float]] = []

    def both() -> None:
        folder = tmp_path / str(len(pairs))
        folder.mkdir()
        pairs.append((_torch_ms(step, folder), _harness_ms(step, folder)))

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1)
    ratios = sorted(ours / (stop + export) for (stop, export), ours in pairs)
    stop, export = pairs[-1][0]
    benchmark.extra_info["ratio_to_stop_and_export"] = round(ratios[len(ratios) // 2], 3)
    print(
        f"\nwindow end: {ratios[len(ratios) // 2]:.2f} x torch's stop and export "
        f"(last round: stop {stop:.1f} ms, export {export:.1f} ms, ours {pairs[-1][1]:.1f} ms)"
    )
