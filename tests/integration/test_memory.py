"""A long run takes no more memory than a short one."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from harness import session
from harness.capture.recipe import Recipe
from harness.capture.schedule import Schedule

MB = 1_000_000


def grown_bytes(root: Path, num_steps: int, profile: Recipe | None = None) -> list[int]:
    """Memory that python holds at ten points of a run, after what the first tenth took."""
    batch = torch.ones(4, 2)
    every, held = num_steps // 10, []
    with session("foo", root=root, profile=profile) as run:
        for _ in run.steps(itertools.repeat(batch), f"{num_steps}ba"):
            with run.phase("forward"):
                pass
            run.log({"loss": 0.5, "step_number": run.step})
            if run.step % every == 0:
                run.attempt.writer.flush()
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
    return [size - held[0] for size in held]


def test_memory_is_flat_over_20_000_idle_steps(root: Path) -> None:
    tracemalloc.start()
    try:
        grown = grown_bytes(root, 20_000)
    finally:
        tracemalloc.stop()
    # The queues and blocks in use differ by some hundred kB from one moment to the next.
    assert max(grown) < MB / 2, grown
    assert grown[-1] - grown[4] < MB / 10, grown


@pytest.mark.slow
def test_the_process_stays_as_large_as_it_is(make_trainer: Callable[..., Any], make_loader: Callable[..., Any]) -> None:
    from harness.trainer.callback import Callback

    process, sizes = psutil.Process(), []

    class Looks(Callback):
        def batch_end(self, trainer: Any) -> None:
            if trainer.state.timestamp.batch % 2_000 == 0:
                gc.collect()
                sizes.append(process.memory_info().rss)

    make_trainer(
        train_dataloader=make_loader(100),
        max_duration="20000ba",
        callbacks=[Looks()],
        profile=Recipe(name="never", schedule=Schedule(wait=10**9, active=1)),
        loggers=["tensorboard"],
    ).fit()
    assert len(sizes) == 10
    assert sizes[-1] - sizes[2] < 3 * MB, [(size - sizes[0]) / MB for size in sizes]


@pytest.mark.slow
def test_windows_leave_nothing_behind(root: Path) -> None:
    recipe = Recipe(name="often", schedule=Schedule(wait=20, warmup=1, active=1, repeat=0))
    tracemalloc.start()
    try:
        grown = grown_bytes(root, 600, recipe)
    finally:
        tracemalloc.stop()
    assert grown[-1] - grown[4] < MB / 5, grown


SAVES = """
import itertools, re, sys
import torch
from harness import session

def peak():
    # Not getrusage: that has the peak of the process that started this one, before its exec.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

model = torch.nn.Linear(5000, 5000)  # 100 MB
before = 0
options = {"save_interval": "1ba", "save_num_checkpoints_to_keep": 1}
with session("foo", root=sys.argv[1], state={"model": model}, **options) as run:
    for _ in run.steps(itertools.repeat(torch.ones(1)), "6ba"):
        with torch.no_grad():
            model.weight.add_(1)
        before = before or peak()
print(peak() - before)
"""


def test_saving_beside_the_training_takes_the_memory_of_one_copy(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAVES, str(root)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert 90 * MB < int(done.stdout) < 125 * MB
