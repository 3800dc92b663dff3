"""How long a checkpoint holds up training: beside `torch.save` and beside a plain copy in memory.

They take turns, each after a step that changed the state. `async` is what training waits for as a rule: the state is
copied, and a thread writes it. `save` is a checkpoint that is waited for: it has a checksum and is on the disk.
`torch.save` leaves the bytes in the page cache, so there is also `torch.save` with an fsync, and `write`, which is the
checkpoint's file with its checksum and without one.
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
from harness.checkpoint.write import write_state

WIDTHS = {"1MB": 288, "50MB": 2048, "1GB": 9216}
"""AdamW holds two more values for each weight: three times 4 * width^2 bytes."""
ROUNDS = {"1MB": 9, "50MB": 9, "1GB": 3}


@pytest.mark.benchmark(group="checkpoint", timer=clock)
@pytest.mark.parametrize("size", WIDTHS)
def test_save(benchmark: Any, tmp_path: Path, size: str) -> None:
    torch.set_num_threads(1)
    rounds = 2 if benchmark.disabled else ROUNDS[size]
    rows = itertools.islice(measure_saves(tmp_path, WIDTHS[size], rounds), 1, None)  # the first one warms up
    record(benchmark, lambda: next(rows), value="async_ms", rounds=rounds)
    assert len(list(rows)) == (rounds - 1 if benchmark.disabled else 0)  # to its end, which closes the run


def measure_saves(root: Path, width: int, rounds: int) -> Iterator[dict[str, float]]:
    """Train a few steps; after each, save in all ways and copy."""
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
        for one in run.steps(itertools.repeat(batch), max_duration=f"{2 * rounds + 4}ba"):
            if run.timestamp.batch and run.timestamp.batch % 2 == 0:
                waited = stall(run.save_checkpoint)
            elif run.timestamp.batch > 1:
                copied = stall(lambda: run.saver.save(wait=False))
                run.saver.finish()
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                yield figures(copied, waited, state, by_hand) | {"written_bytes": newest_bytes(run.directory.path)}
            model(one).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()


def figures(
    copied: tuple[float, float], waited: tuple[float, float], state: dict[str, Any], path: Path
) -> dict[str, float]:
    """What the two saves took, and what the same state takes by hand."""
    plain = stall(lambda: torch.save(state, path))
    durable = stall(lambda: save_durably(state, path))
    path.unlink()
    written = stall(lambda: write_state(state, path))
    copy = stall(lambda: copy_of(state))
    return {
        **named("async", copied),
        **named("save", waited),
        **named("write", written),
        **named("torch_save", plain),
        **named("torch_save_fsync", durable),
        **named("copy", copy),
        "async_to_copy_ratio": copied[1] / copy[1],
        "write_to_torch_save_ratio": written[1] / plain[1],
    }


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
