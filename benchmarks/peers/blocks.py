"""A bare loop and a framework's in one process, taking turns in blocks of steps, and a check that they did.

The harness's own benchmarks take turns step by step. That is wrong here: a TensorBoard writer thread wakes up when a
step has logged, and fights for Python's lock with the next step, which would always be a bare one. In a block each
loop is disturbed by its own threads alone, and before each block the process waits until they have nothing to do.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import numpy as np
from workloads import Pair, Twins

from harness.bench.interleaved import IntArray, Usage, settle_garbage, trimmed_mean
from harness.bench.measured import Measured

_LEAD_PART = 10
"""The first tenth of each block does not count: after waiting the caches are cold, for a framework's code most."""
_LOOK_S = 0.001
_MAX_LOOKS = 100
_TASKS = "/proc/self/task"
_WORKING = ("R", "D")
"""States of a thread in `/proc`: running or about to, and waiting for a disk."""


class BlockLoader:
    """Yields a fixed number of batches, and runs the bare loop on those of a block before it yields the first of them.

    Args:
        twins: What the loops train, and on what.
        num_steps: Batches that count.
        warmup_steps: Batches before those; whole blocks.
        block_steps: Steps that one loop makes until it is the other's turn. The last block may be shorter.
    """

    def __init__(self, twins: Twins, num_steps: int, *, warmup_steps: int, block_steps: int) -> None:
        assert warmup_steps % block_steps == 0, "the first block that counts would hold steps of the warm-up"
        self._twins = twins
        self._num_batches = warmup_steps + num_steps
        self._warmup_steps = warmup_steps
        self._block_steps = block_steps
        self._bare_ns: list[int] = []
        self._subject_ns: list[int] = []
        self._bare_writes: list[int] = []
        self._subject_writes: list[int] = []
        self._counted_from = Usage.now()

    def __iter__(self) -> Iterator[Pair]:
        cpu, wall, noted_ns = time.thread_time_ns, time.perf_counter_ns, self._subject_ns.append
        weights, noted_writes = next(self._twins.subject.model.parameters()), self._subject_writes.append
        batches = islice(cycle(self._twins.batches), self._num_batches)
        while block := list(islice(batches, self._block_steps)):
            if len(self._subject_writes) == self._warmup_steps:
                settle_garbage()
                self._counted_from = Usage.now()
            wait_until_idle()
            self._bare_steps(block)
            wait_until_idle()
            for batch in block:
                noted_writes(weights._version)
                noted_ns(wall())
                noted_ns(cpu())
                yield batch
                noted_ns(cpu())
                noted_ns(wall())

    def _bare_steps(self, batches: Sequence[Pair]) -> None:
        cpu, wall, noted_ns = time.thread_time_ns, time.perf_counter_ns, self._bare_ns.append
        model, loss_of, optimizer = self._twins.bare.model, self._twins.bare.loss, self._twins.bare.optimizer
        weights, noted_writes = next(model.parameters()), self._bare_writes.append
        for batch in batches:
            noted_writes(weights._version)
            noted_ns(wall())
            noted_ns(cpu())
            loss = loss_of(model(batch[0]), batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            noted_ns(cpu())
            noted_ns(wall())

    def result(self, *, clocked_ns: int = 0) -> Measured:
        """What the steps say; call it when the framework's loop is closed and its threads have ended.

        Args:
            clocked_ns: CPU time of threads that work by the clock (a sampler), of the whole process: only the
                framework's share of the wall time counts.
        """
        used = Usage.now().since(self._counted_from)
        # A framework that asks for no batch after its last one leaves that step without an end.
        subject = self._readings(self._subject_ns)
        bare = self._readings(self._bare_ns)[: len(subject)]
        size = len(subject)
        assert size > 1, "too few steps to compare"
        settled = np.arange(size) % self._block_steps >= self._block_steps // _LEAD_PART
        bare_cpu, bare_wall = _cpu_and_wall(bare[settled])
        subject_cpu, subject_wall = _cpu_and_wall(subject[settled])
        share = float(_cpu_and_wall(subject)[1].sum() / (subject[-1, 3] - bare[0, 0]))
        return Measured(
            num_steps=size,
            bare_us=float(np.median(bare_cpu)) / 1e3,
            thread_us=trimmed_mean(subject_cpu - bare_cpu) / 1e3,
            background_us=max(0.0, used.background_ns - clocked_ns * (1 - share)) / size / 1e3,
            children_us=used.children_ns / size / 1e3,
            wall_us=trimmed_mean(subject_wall - bare_wall) / 1e3,
            null_us=trimmed_mean(bare_cpu[1::2] - bare_cpu[: len(bare_cpu) // 2 * 2 : 2]) / 1e3,
            measured_share=share,
        )

    def batches_ahead(self) -> int:
        """How many batches the framework fetches before it trains on the first of them.

        Optimizers write to parameters in place, and torch counts such writes for each tensor: reading the count costs
        neither loop anything.

        Raises:
            RuntimeError: The framework left batches out, or did not take exactly one step between two of them, so
                that its steps are not those of the bare loop.
        """
        asked = len(self._subject_writes)
        per_step = self._bare_writes[1] - self._bare_writes[0]
        theirs = set(np.diff(self._subject_writes[self._warmup_steps :]).tolist())
        if asked != self._num_batches or theirs != {per_step}:
            raise RuntimeError(
                f"the framework asked for {asked} of {self._num_batches} batches and trained between them with "
                f"{sorted(theirs)} writes to the weights, where the bare loop has {per_step}"
            )
        done = (self._subject_writes[self._warmup_steps] - self._subject_writes[0]) // per_step
        return self._warmup_steps - int(done)

    def _readings(self, noted_ns: list[int]) -> IntArray:
        """A row for each ended step that counts: wall, CPU, CPU, wall."""
        table = np.array(noted_ns[: len(noted_ns) // 4 * 4], dtype=np.int64).reshape(-1, 4)
        return table[self._warmup_steps :]


def _cpu_and_wall(readings: IntArray) -> tuple[IntArray, IntArray]:
    return readings[:, 2] - readings[:, 1], readings[:, 3] - readings[:, 0]


def wait_until_idle() -> None:
    """Wait until no other thread of the process has anything to do, at most some 100 ms.

    Asks the system for their state. CPU time that stands still says nothing on a busy machine: a thread that waits for
    a processor uses none, and goes on in the middle of the next step.
    """
    for _ in range(_MAX_LOOKS):
        time.sleep(_LOOK_S)
        if not _others_work():
            return


def _others_work() -> bool:
    own = str(threading.get_native_id())
    return any(_state(task) in _WORKING for task in os.listdir(_TASKS) if task != own)  # noqa: PTH208  quicker


def _state(task: str) -> str:
    try:
        with open(f"{_TASKS}/{task}/stat", "rb") as file:  # noqa: PTH123  quicker
            return file.read().rpartition(b") ")[2][:1].decode()
    except OSError:
        return ""  # it has ended
