"""From the step to every logger: the training thread appends one tuple, the writer thread does the rest."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError, LoggerError
from harness.loggers.base import Logger, Progress, RunInfo
from harness.loggers.outlet import METRICS, PARAMS, SYSTEM, TEXT, LoggerHealth, Outlet, Record
from harness.loggers.values import (
    Deferred,
    as_tensor,
    check_name,
    on_device,
    plain_params,
    resolve,
    tensor_value,
    to_number,
)
from harness.loggers.writer import HANG_TIMEOUT_S, WriterThread

if TYPE_CHECKING:
    import torch

    from harness.loggers.late import LateNumber

logger = logging.getLogger(__name__)

CAPACITY = 65_536
BATCH = 512
"""Records that go to the loggers at once. Small, so that other threads get a turn between two batches."""
_QUEUE_JOB = "log queue"
_PLAIN_TYPES = frozenset({float, int})
_MAX_KNOWN_NAMES = 10_000


class LogFanout:
    """Gives what is logged to all loggers, on the writer's thread.

    Makes jobs in `writer`: one that hands out what was logged, and one per logger. Order of calls: construct,
    `open`, `writer.start`, log …, `close`, `writer.close`. In a forked child, and after `close`, logging does
    nothing.

    Args:
        loggers: The destinations, in order. Two of the same name are told apart by a number.
        writer: The thread, not started yet.
        capacity: Records that may wait; when they do, `log` waits for the writer and nothing is dropped.
        progress: Called by the writer a few times a second with the last metrics, for loggers with
            `on_progress`.
        defer: Which tensors are read later by the writer instead of at once.
    """

    def __init__(
        self,
        loggers: Sequence[Logger],
        writer: WriterThread,
        *,
        capacity: int = CAPACITY,
        progress: Callable[[Mapping[str, float]], Progress | None] | None = None,
        defer: Callable[[torch.Tensor], bool] = on_device,
    ) -> None:
        self._writer = writer
        self._capacity = capacity
        self._progress = progress
        self._defer = defer
        self._queue: deque[Record] = deque()
        self._known_names: set[str] = set()
        self._last_metrics: dict[str, float] = {}
        self._lost_records = 0
        self._closing = False
        self._closed = False
        self.staged: dict[str, Any] = {}
        """Values that wait for `commit`. Floats under names that are known to be good may be put here directly."""
        self._staged_deferred: list[Deferred] = []
        self.on_failure: Callable[[], None] = lambda: None
        """Called from the writer's thread when there is something for `raise_failure`."""
        self._outlets = self._make_outlets(loggers)
        writer.add(_QUEUE_JOB, self._distribute)
        for outlet in self._outlets:
            writer.add(_job_name(outlet), partial(self._deliver, outlet))

    def _make_outlets(self, loggers: Sequence[Logger]) -> list[Outlet]:
        outlets: list[Outlet] = []
        for target in loggers:
            taken = sum(outlet.logger.name == target.name for outlet in outlets)
            name = f"{target.name}#{taken + 1}" if taken else target.name
            outlets.append(Outlet(target, name, capacity=self._capacity, report=self._report))
        return outlets

    def open(self, run: RunInfo) -> None:
        """Open every logger, in order. When one raises, those already open are closed before it goes on."""
        opened: list[Outlet] = []
        try:
            for outlet in self._outlets:
                outlet.logger.open(run)
                opened.append(outlet)
        except BaseException:
            self._closed = True
            for outlet in opened:
                outlet.close()
            raise

    def log(self, step: int, metrics: Mapping[str, object]) -> None:
        """Queue the metrics of a step. The values are copied; a mapping changed afterwards changes nothing.

        Args:
            step: Global step, from 1.
            metrics: Numbers by name: int, float, bool, numpy scalars, tensors of one element. A tensor on a
                device is read by the writer, so that the step does not wait for the device.

        Raises:
            ConfigError: A name or a value cannot be logged; says which and what to do.
        """
        if self._closed or self._writer.inactive:
            return
        if type(metrics) is dict and self._is_plain(metrics):
            if metrics:
                self._put(step, metrics.copy(), None)
            return
        values: dict[str, Any] = {}
        deferred: list[Deferred] = []
        self._check_into(values, deferred, metrics)
        if values:
            self._put(step, values, deferred or None)

    def stage(self, metrics: Mapping[str, object]) -> None:
        """As `log`, but keep the metrics until `commit`, so that several calls in a step become one record.

        A name given twice keeps the last value.

        Raises:
            ConfigError: As `log`.
        """
        if self._closed or self._writer.inactive:
            return
        if self._staged_deferred and isinstance(metrics, Mapping):
            # A tensor logged before under the same name must not be read over the new value.
            self._staged_deferred = [item for item in self._staged_deferred if item.name not in metrics]
        # `_is_plain`, written out: a step has made each function cold that it does not call itself.
        if (
            type(metrics) is dict
            and self._known_names.issuperset(metrics)
            and _PLAIN_TYPES.issuperset(map(type, metrics.values()))
        ):
            self.staged.update(metrics)
        else:
            self._check_into(self.staged, self._staged_deferred, metrics)

    def stage_late(self, name: str, number: LateNumber) -> None:
        """As `stage`, for one number that is on its way already, under a name that is known to be good."""
        if not (self._closed or self._writer.inactive):
            self.staged[name] = None
            self._staged_deferred.append(Deferred(self.staged, name, number))

    def commit(self, step: int) -> None:
        """Queue what was staged as one record of this step."""
        values, deferred = self.staged, self._staged_deferred
        self.staged = {}
        if deferred:
            self._staged_deferred = []
        if values and not (self._closed or self._writer.inactive):
            queue = self._queue
            if len(queue) >= self._capacity:
                self._put(step, values, deferred or None)
            else:  # in every step: without another call
                queue.append((METRICS, step, time.time_ns(), values, deferred or None))

    def drop_staged(self) -> None:
        """Forget what was staged: its step was given up."""
        self.staged = {}
        self._staged_deferred = []

    def log_system(self, step: int, metrics: Mapping[str, float], *, time_ns: int | None = None) -> None:
        """Queue a system sample of plain numbers. The sampler's thread calls it, and watches the writer."""
        if self._closed or self._writer.inactive:
            return
        self._writer.watch()
        self._append(SYSTEM, step, time.time_ns() if time_ns is None else time_ns, dict(metrics))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Queue the run's settings, nested ones flattened (`optimizer.lr`).

        Raises:
            ConfigError: It is not a mapping.
        """
        if not (self._closed or self._writer.inactive):
            self._append(PARAMS, 0, time.time_ns(), plain_params(params))

    def log_text(self, line: str) -> None:
        """Queue a line for people."""
        if self._closed or self._writer.inactive:
            return
        self._writer.watch()
        self._append(TEXT, 0, time.time_ns(), str(line))

    @property
    def last_metrics(self) -> dict[str, float]:
        """The last value of each metric that has reached the writer."""
        return self._last_metrics.copy()

    def health(self) -> dict[str, LoggerHealth]:
        """The loggers by name."""
        return {
            outlet.name: outlet.health(hung=self._is_hung(outlet), lost_records=self._lost_records)
            for outlet in self._outlets
        }

    @property
    def has_failed(self) -> bool:
        """Whether a required logger failed or hangs."""
        return any(outlet.failure is not None for outlet in self._outlets)

    def raise_failure(self) -> None:
        """Raise what ends the run.

        Raises:
            LoggerError: A required logger failed or hangs.
        """
        for outlet in self._outlets:
            if outlet.failure is not None:
                raise LoggerError(
                    f"the logger {outlet.name!r} is required, and {outlet.failure}",
                    hint="the other logs and the checkpoints are whole; run.json counts what this one lacks",
                )

    def close(self, timeout_s: float = HANG_TIMEOUT_S) -> None:
        """Hand everything over and close the loggers. One that hangs costs up to `timeout_s`."""
        if self._closed or self._writer.inactive:
            return
        self._closed = self._closing = True
        reached = self._writer.wait_until(self._all_closed, hang_timeout_s=timeout_s)
        if not reached:  # the thread was never started
            self._distribute()
            for outlet in self._outlets:
                outlet.close()
        for outlet in self._outlets:
            if self._is_hung(outlet):
                outlet.note_hang()

    def _all_closed(self) -> bool:
        return all(outlet.closed or self._is_hung(outlet) for outlet in self._outlets)

    def _is_hung(self, outlet: Outlet) -> bool:
        return self._writer.is_hung(_job_name(outlet))

    def _is_plain(self, metrics: dict[str, Any]) -> bool:
        return self._known_names.issuperset(metrics) and _PLAIN_TYPES.issuperset(map(type, metrics.values()))

    def _check_into(self, values: dict[str, Any], deferred: list[Deferred], metrics: Mapping[str, object]) -> None:
        if type(metrics) is not dict and not isinstance(metrics, Mapping):  # the first is the faster
            raise ConfigError(
                f"metrics is a {type(metrics).__name__}, expected numbers by name",
                hint='write {"loss": loss}',
            )
        for name, value in metrics.items():
            if name not in self._known_names:
                self._learn(name)
            if type(value) in _PLAIN_TYPES:
                values[name] = value
            elif (tensor := as_tensor(value)) is not None:
                later = tensor_value(values, name, tensor, self._defer)
                if later is not None:
                    deferred.append(later)
            else:
                values[name] = to_number(name, value)

    def _put(self, step: int, values: dict[str, Any], deferred: list[Deferred] | None) -> None:
        queue = self._queue
        if len(queue) >= self._capacity and not self._wait_for_space():
            return
        queue.append((METRICS, step, time.time_ns(), values, deferred))

    def _learn(self, name: str) -> None:
        check_name(name)
        if len(self._known_names) >= _MAX_KNOWN_NAMES:
            self._known_names.clear()
        self._known_names.add(name)

    def _append(self, kind: int, step: int, time_ns: int, payload: object) -> None:
        if len(self._queue) < self._capacity or self._wait_for_space():
            self._queue.append((kind, step, time_ns, payload, None))

    def _wait_for_space(self) -> bool:
        """Wait for the writer. False, and a record lost, when it hangs or waits for us itself."""
        # To the half, so that the caller does not wait again at once.
        enough = self._capacity // 2
        self._writer.wait_until(lambda: len(self._queue) <= enough or self._writer.is_hung(_QUEUE_JOB))
        if len(self._queue) < self._capacity:
            return True
        self._lost_records += 1
        return False

    def _report(self, message: str) -> None:
        """Tell people, on the log and in the other loggers. Runs on the writer's thread: must not wait."""
        logger.warning("%s", message)
        self._queue.append((TEXT, 0, time.time_ns(), message, None))
        if self.has_failed:
            self.on_failure()

    def _distribute(self) -> None:
        """Job: hand out what is queued now, in batches."""
        failure: Exception | None = None
        waiting = len(self._queue)
        hangs = [(outlet, self._is_hung(outlet)) for outlet in self._outlets]
        popleft = self._queue.popleft
        while waiting:
            size = min(waiting, BATCH)
            waiting -= size
            batch = [popleft() for _ in range(size)]
            failure = self._read_tensors(batch) or failure
            for record in batch:
                if record[0] == METRICS:
                    self._last_metrics.update(record[3])
            for outlet, hung in hangs:
                outlet.offer(batch, hung=hung)
        if failure is not None:
            raise failure  # counted and reported by the writer; the other values were handed out

    def _read_tensors(self, batch: list[Record]) -> Exception | None:
        deferred = [item for record in batch if record[4] is not None for item in record[4]]
        if deferred:
            try:
                resolve(deferred)
            except Exception as error:
                for item in deferred:
                    if item.values[item.name] is None:
                        del item.values[item.name]
                return error
        return None

    def _deliver(self, outlet: Outlet) -> None:
        """Job: one logger takes what it has been offered."""
        if outlet.closed:
            return
        self._show_progress(outlet)
        # What was queued when closing began has then been offered by the first job.
        if self._closing and (not self._queue or self._writer.is_hung(_QUEUE_JOB)):
            outlet.close()
        else:
            outlet.deliver()

    def _show_progress(self, outlet: Outlet) -> None:
        now_ns = time.monotonic_ns()
        if self._progress is None or not (outlet.wants_progress(now_ns) or self._closing):
            return
        progress = self._progress(self._last_metrics)
        if progress is not None:
            outlet.show(progress, now_ns)


def _job_name(outlet: Outlet) -> str:
    return f"logger {outlet.name}"
