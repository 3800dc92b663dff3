"""How long a synchronous checkpoint holds up training: beside `torch.save` and beside a plain copy in memory.

The three take turns, each after a step that changed the state. A run's checkpoint is on the disk when the save returns
and has a checksum; `torch.save` leaves the bytes in the page cache, so there is also `torch.save` with an fsync.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import clock, record
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import harness

WIDTHS = {"1MB": 288, "50MB": 2048}
"""AdamW holds two more values for each weight: three times 4 * width^2 bytes."""
ROUNDS = 9


@pytest.mark.benchmark(group="checkpoint", timer=clock)
@pytest.mark.parametrize("size", WIDTHS)
def test_save(benchmark: Any, tmp_path: Path, size: str) -> None:
    torch.set_num_threads(1)
    rows = itertools.islice(measure_saves(tmp_path, WIDTHS[size]), 1, None)  # the first one warms up
    record(benchmark, lambda: next(rows), value="save_ms", rounds=ROUNDS)
    assert len(list(rows)) == (ROUNDS - 1 if benchmark.disabled else 0)  # to its end, which closes the run


def measure_saves(root: Path, width: int) -> Iterator[dict[str, float]]:
    """Train a few steps; after each, save in three ways and copy."""
    model = nn.Linear(width, width)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = torch.randn(4, width)
    by_hand = root / "by-hand.pt"
    with harness.session(
        "bench",
        root=root,
        save_interval="1000000ba",
        save_num_checkpoints_to_keep=2,
        state={"model": model, "optimizer": optimizer},
    ) as run:
        for one in run.steps(itertools.repeat(batch), max_duration=f"{ROUNDS + 2}ba"):
            if run.timestamp.batch:
                saved = stall(run.save_checkpoint)
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                yield {
                    **named("save", saved),
                    **named("torch_save", stall(lambda state=state: torch.save(state, by_hand))),
                    **named("torch_save_fsync", stall(lambda state=state: save_durably(state, by_hand))),
                    **named("copy", stall(lambda state=state: copy_of(state))),
                    "written_bytes": newest_bytes(run.directory.path),
                }
            model(one).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()


def stall(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of the calling thread, in ms."""
    wall_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
    call()
    return (time.perf_counter_ns() - wall_ns) / 1e6, (time.thread_time_ns() - cpu_ns) / 1e6


def named(what: str, times_ms: tuple[float, float]) -> dict[str, float]:
    """The two times as figures."""
    return {f"{what}_ms": times_ms[0], f"{what}_cpu_ms": times_ms[1]}


def save_durably(state: dict[str, Any], path: Path) -> None:
    """`torch.save`, and wait until it is on the disk."""
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def copy_of(state: dict[str, Any]) -> Any:
    """The same with tensors of its own."""
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, state)


def newest_bytes(directory: Path) -> int:
    """Size of the checkpoint that was saved last."""
    return (directory / "checkpoints" / "latest-rank0.pt").stat().st_size
