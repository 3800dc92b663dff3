"""A bare loop and a measured one in the same process, taking turns step by step.

A machine that others use too changes its speed from one second to the next; two loops that alternate see the same
machine. The dataloader that the measured loop asks for a batch first runs one step of the bare loop on that batch.

Needs torch and numpy only, so that other frameworks can be measured with it where the harness is not installed.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.bench.measured import Aside, Measured

IntArray = npt.NDArray[np.int64]
TRIM = 0.02
"""The share of steps left out at either end of the differences: interrupts go, steps that cost more stay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedParts:
    """What a loop trains. The bare and the measured loop each need one of their own, with equal weights."""

    model: nn.Module
    """Called with the batch's first item where the batch is a tuple or list, else with the batch."""
    optimizer: Optimizer
    """Stepped once per batch."""
    loss: Callable[[Any, Any], Tensor]
    """Outputs and batch to a scalar."""
    forward: Callable[[Any], Any] | None = None
    """Batch to outputs, for a model that is called otherwise."""

    def same_weights_as(self, other: TrainedParts) -> bool:
        """Whether all parameters and buffers are bit-equal."""
        mine, theirs = self.model.state_dict(), other.model.state_dict()
        return mine.keys() == theirs.keys() and all(bool((mine[name] == theirs[name]).all()) for name in mine)


class InterleavingLoader:
    """Yields batches for ever, and runs a step of the bare loop on each before it does.

    Args:
        bare: What the bare loop trains.
        batches: An endless iterator; the time it takes is nobody's.
        warmup_steps: Steps that are not counted.
        pauses: Tells before each batch whether the bare loop leaves this step out, for steps during which it would
            be measured too (a recording profiler).
        apart: Numbers of steps, from 1, that hold something rare (a checkpoint): they are not compared, and have
            figures of their own.
    """

    def __init__(
        self,
        bare: TrainedParts,
        batches: Iterator[Any],
        *,
        warmup_steps: int,
        pauses: Callable[[], bool] | None = None,
        apart: Container[int] = (),
    ) -> None:
        self._apart = apart
        self._bare = bare
        self._batches = batches
        self._warmup_steps = warmup_steps
        self._pauses = pauses
        self._cpu_ns: list[int] = []
        self._wall_ns: list[int] = []
        self._paused: list[bool] = []
        self._counted_from = Usage.now()

    def __iter__(self) -> Iterator[Any]:
        cpu, wall, batches, pauses = time.thread_time_ns, time.perf_counter_ns, self._batches, self._pauses
        model, loss_of, optimizer = self._bare.forward or self._bare.model, self._bare.loss, self._bare.optimizer
        takes_first = self._bare.forward is None
        cpu_ns, wall_ns, paused = self._cpu_ns.append, self._wall_ns.append, self._paused.append
        for num_yielded, batch in enumerate(batches):
            if num_yielded == self._warmup_steps:
                self._counted_from = Usage.now()
            pause = pauses is not None and pauses()
            paused(pause)
            inputs = batch[0] if takes_first and isinstance(batch, (tuple, list)) else batch
            # Each step lies between two readings of the CPU clock, and what surrounds them is the same for both.
            wall_ns(wall())
            cpu_ns(cpu())
            if not pause:
                # The bare loop, written out: a call around it would be counted for it.
                loss = loss_of(model(inputs), batch)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
            cpu_ns(cpu())
            wall_ns(wall())
            wall_ns(wall())
            cpu_ns(cpu())
            yield batch
            cpu_ns(cpu())
            wall_ns(wall())

    def result(self, *, clocked_ns: int = 0) -> Measured:
        """What the steps so far say; call it when the measured loop is closed and its threads have ended.

        Args:
            clocked_ns: CPU time of threads that work by the clock (a sampler), of the whole process: only the measured
                loop's share of the wall time counts.
        """
        used = Usage.now().since(self._counted_from)
        bare_cpu, subject_cpu = self._columns(self._cpu_ns)
        bare_wall, subject_wall = self._columns(self._wall_ns)
        size = len(bare_cpu)
        assert size > 1, "too few steps to compare"
        compared = ~(self._paused_steps(size) | self._apart_steps(size))
        share = float(subject_wall.sum() / (bare_wall.sum() + subject_wall.sum()))
        background_ns = max(0.0, used.background_ns - clocked_ns * (1 - share))
        bare = bare_cpu[compared]
        return Measured(
            num_steps=size,
            bare_us=float(np.median(bare)) / 1e3,
            thread_us=trimmed_mean(subject_cpu[compared] - bare) / 1e3,
            background_us=background_ns / size / 1e3,
            children_us=used.children_ns / size / 1e3,
            wall_us=trimmed_mean(subject_wall[compared] - bare_wall[compared]) / 1e3,
            null_us=trimmed_mean(bare[1::2] - bare[: len(bare) // 2 * 2 : 2]) / 1e3 if len(bare) > 3 else 0.0,
            measured_share=share,
        )

    def paused_step_us(self) -> float | None:
        """Median CPU time of the measured loop's steps during which the bare loop paused, in µs; None without any."""
        _, subject = self._columns(self._cpu_ns)
        paused = self._paused_steps(len(subject))
        return float(np.median(subject[paused])) / 1e3 if paused.any() else None

    def paused(self) -> Aside | None:
        """The measured loop's steps during which the bare loop paused, those apart left out; None without any."""
        size = len(self._columns(self._cpu_ns)[0])
        return self._aside(self._paused_steps(size) & ~self._apart_steps(size))

    def apart(self) -> Aside | None:
        """The measured loop's steps that were to be kept apart; None without any."""
        return self._aside(self._apart_steps(len(self._columns(self._cpu_ns)[0])))

    def _aside(self, steps: npt.NDArray[np.bool_]) -> Aside | None:
        if not steps.any():
            return None
        compared = ~(self._paused_steps(len(steps)) | self._apart_steps(len(steps)))
        cpu_us, wall_us = (
            float(np.median(subject[steps]) - np.median(bare[compared])) / 1e3
            for bare, subject in (self._columns(self._cpu_ns), self._columns(self._wall_ns))
        )
        return Aside(num_steps=int(steps.sum()), thread_us=cpu_us, wall_us=wall_us)

    def _paused_steps(self, size: int) -> npt.NDArray[np.bool_]:
        return np.array(self._paused[self._warmup_steps :][:size], dtype=np.bool_)

    def _apart_steps(self, size: int) -> npt.NDArray[np.bool_]:
        first = self._warmup_steps + 1
        return np.array([number in self._apart for number in range(first, first + size)], dtype=np.bool_)

    def _columns(self, readings: list[int]) -> tuple[IntArray, IntArray]:
        """Bare and measured step in ns, those of the warm-up left out. A step that was not ended is left out."""
        table = np.array(readings[: len(readings) // 4 * 4], dtype=np.int64).reshape(-1, 4)[self._warmup_steps :]
        return table[:, 1] - table[:, 0], table[:, 3] - table[:, 2]


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time used so far, in ns."""

    background_ns: int
    """Of the threads of this process but the calling one."""
    children_ns: int
    """Of child processes that have ended."""

    @classmethod
    def now(cls) -> Usage:
        """Read the clocks."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(
            time.process_time_ns() - time.thread_time_ns(),
            round((children.ru_utime + children.ru_stime) * 1e9),
        )

    def since(self, earlier: Usage) -> Usage:
        """What was used between two readings."""
        return Usage(self.background_ns - earlier.background_ns, self.children_ns - earlier.children_ns)


def trimmed_mean(values: npt.NDArray[Any]) -> float:
    """Mean without the outer 2 % at either end."""
    ordered = np.sort(values)
    cut = int(len(ordered) * TRIM)
    return float(ordered[cut : len(ordered) - cut].mean())


def settle_garbage() -> None:
    """Collect, and set aside what is alive: a collection in the loop then looks at the loop's own objects only."""
    gc.collect()
    gc.freeze()
