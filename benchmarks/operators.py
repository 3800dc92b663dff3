"""Counts the torch operators of a training step: the same number on every machine, where times only resemble.

An operator that the harness adds to a step may cost a microsecond here and wait for the whole device elsewhere
(`loss.item()`), and no clock on a CPU tells the two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness import Trainer, session
from harness.workloads.base import Workload
from harness.workloads.load import load_workload

FEW, MANY = 10, 60
"""Steps of two runs: what differs between them is what 50 steps called."""
WORKLOAD = "harness.bench.tiny:build"


class Counter(TorchDispatchMode):
    """Counts what the calling thread sends to torch's dispatcher, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_calls += 1
        return func(*args, **(kwargs or {}))


def added_operators(loop: str, folder: Path) -> float:
    """What a loop calls in each step beyond the bare loop.

    Args:
        loop: `session` or `trainer`.
        folder: Gets two runs.
    """
    return _per_step(LOOPS[loop], folder) - _per_step(_bare, folder)


def _per_step(train: Callable[[Workload, int, Path], None], folder: Path) -> float:
    counts = []
    for num_steps in (FEW, MANY):
        workload = load_workload(WORKLOAD, {})
        workload = replace(workload, train_dataloader=[*workload.train_dataloader] * num_steps)
        with Counter() as counter:
            train(workload, num_steps, folder / f"run{train.__name__}-{num_steps}")
        counts.append(counter.num_calls)
    return (counts[1] - counts[0]) / (MANY - FEW)


def _step(workload: Workload, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    loss = workload.loss_fn(workload.model(batch[0]), batch)  # type: ignore[misc]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _bare(workload: Workload, _num_steps: int, _root: Path) -> None:
    optimizer = workload.optimizer(workload.model)
    for batch in workload.train_dataloader:
        _step(workload, optimizer, batch)


def _session(workload: Workload, num_steps: int, root: Path) -> None:
    optimizer = workload.optimizer(workload.model)
    with session(root.name, root=root.parent) as run:
        for batch in run.steps(workload.train_dataloader, max_duration=f"{num_steps}ba"):
            _step(workload, optimizer, batch)


def _trainer(workload: Workload, num_steps: int, root: Path) -> None:
    Trainer(
        model=workload.model,
        train_dataloader=workload.train_dataloader,
        max_duration=f"{num_steps}ba",
        loss_fn=workload.loss_fn,
        optimizers=workload.optimizer(workload.model),
        device="cpu",
        save_interval=None,
        run_name=root.name,
        root=root.parent,
    ).fit()


LOOPS: Mapping[str, Callable[[Workload, int, Path], None]] = {"session": _session, "trainer": _trainer}
