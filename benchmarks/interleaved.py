"""What the harness adds to a step, measured beside a bare loop in the same process.

A machine that others use too changes its speed from one second to the next, so the two loops take turns step by step:
the dataloader that the harness asks for a batch first runs one step of the bare loop. Time is CPU time of the training
thread (`time.thread_time_ns`), to which the CPU time of the harness's own threads is added.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WARMUP_STEPS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Added:
    """CPU time the harness adds to a step, in µs."""

    bare_us: float
    """Median of the bare step."""
    thread_us: float
    """Median on the training thread, beyond the bare step."""
    background_us: float
    """CPU time of the harness's threads, divided by the number of steps."""
    null_us: float
    """The bare loop's odd steps against its even ones: what cannot be told from zero."""

    @property
    def total_us(self) -> float:
        """All threads together."""
        return self.thread_us + self.background_us


class TinyStep:
    """Two `Linear(64, 64)`, batch 32, SGD: a step so short that a microsecond shows."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.batch = (
            torch.randn(32, 64, generator=generator),
            torch.randint(64, (32,), generator=generator),
        )

    @staticmethod
    def loss(outputs: Tensor, batch: Any) -> Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(outputs, batch[1])


class AlternatingLoader:
    """Yields the same batch for ever, and runs a step of the bare loop before each.

    Attributes:
        bare_ns: CPU time of each bare step.
        other_ns: CPU time from a batch to the next request: the measured loop's step.
    """

    def __init__(self, bare: TinyStep, batch: Any) -> None:
        self._bare = bare
        self._batch = batch
        self.bare_ns: list[int] = []
        self.other_ns: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        clock, batch = time.thread_time_ns, self._batch
        model, loss_of, optimizer = self._bare.model, self._bare.loss, self._bare.optimizer
        bare_ns, other_ns = self.bare_ns.append, self.other_ns.append
        before = clock()
        while True:
            # The bare loop, written out: a call around it would be counted for it.
            loss = loss_of(model(batch[0]), batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            after = clock()
            bare_ns(after - before)
            yield batch
            before = clock()
            other_ns(before - after)


def measure(run: Callable[[TinyStep, AlternatingLoader, int], int], *, num_steps: int) -> Added:
    """Run a loop of `num_steps` beside the bare one.

    Args:
        run: Trains the step on the loader for so many steps, and returns the CPU ns of its background threads.
        num_steps: Steps that count; some more are run first.
    """
    torch.set_num_threads(1)
    bare, subject = TinyStep(), TinyStep()
    loader = AlternatingLoader(bare, bare.batch)
    gc.collect()
    gc.freeze()
    background_ns = run(subject, loader, WARMUP_STEPS + num_steps)
    gc.unfreeze()
    bare_ns = np.array(loader.bare_ns[WARMUP_STEPS:][:num_steps])
    other_ns = np.array(loader.other_ns[WARMUP_STEPS:][:num_steps])
    size = min(len(bare_ns), len(other_ns))
    return Added(
        bare_us=float(np.median(bare_ns)) / 1e3,
        thread_us=_trimmed_difference_us(other_ns[:size], bare_ns[:size]),
        background_us=background_ns / (WARMUP_STEPS + num_steps) / 1e3,
        null_us=_trimmed_difference_us(bare_ns[1:size:2], bare_ns[: size - 1 : 2]),
    )


def _trimmed_difference_us(subject: np.ndarray, base: np.ndarray) -> float:
    """Mean of the pairwise differences without the outer 2 %: interrupts go, steps that cost more stay."""
    size = min(len(subject), len(base))
    differences = np.sort(subject[:size] - base[:size])
    cut = size // 50
    return float(differences[cut : size - cut].mean()) / 1e3
