"""From marks to `steps-rank{rank}.jsonl`: the reading side of the recorder.

Runs on the writer thread, a block at a time, with numpy: a step costs about a microsecond here. Also keeps the sums
from which the run's own cost is reported.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from harness.timeline import phases as ph
from harness.timeline.clock import ClockAnchor
from harness.timeline.recorder import Block, Recorder

IntArray = npt.NDArray[np.int64]
_ALWAYS = ("data", "forward", "backward", "optimizer", "harness", "other")
_NO_STEP = -1


@dataclass(slots=True)
class PhaseTotals:
    """Sums over all finished steps of this attempt, and over the time between them."""

    num_steps: int
    """Steps written."""
    step_ns: int
    """Time inside steps, without evaluation."""
    in_steps_ns: IntArray
    """Time in each phase inside steps, shape (MAX_PHASES,)."""
    between_ns: IntArray
    """Time in each phase between steps (ends of epochs), shape (MAX_PHASES,)."""


class StepFile:
    """Drains a recorder into JSON lines.

    Args:
        recorder: Where the marks come from.
        write: Takes whole lines, as bytes.
        first_step: Number of the first step that will be recorded.
    """

    def __init__(self, recorder: Recorder, write: Callable[[bytes], None], *, first_step: int) -> None:
        self._recorder = recorder
        self._write = write
        self._next_step = first_step
        self._epoch = 0
        self._epoch_starts: deque[tuple[int, int]] = deque()
        self._capture: dict[int, str] = {}
        self._carry: IntArray = np.empty((0, 2), dtype=np.int64)
        self._lock = threading.Lock()
        self._encoder = msgspec.json.Encoder()
        self._rows: dict[tuple[str, ...], type[msgspec.Struct]] = {}
        self.totals = PhaseTotals(0, 0, np.zeros(ph.MAX_PHASES, np.int64), np.zeros(ph.MAX_PHASES, np.int64))

    def note_epoch(self, first_step: int, epoch: int) -> None:
        """Steps from this one on belong to this epoch (counted from 0). Training thread."""
        self._epoch_starts.append((first_step, epoch))

    def note_capture(self, step: int, state: str) -> None:
        """This step is inside or next to a capture window: `warmup`, `active` or `adjacent`. Training thread."""
        self._capture[step] = state

    def drain(self, *, final: bool = False) -> None:
        """Write all steps that are finished. Any thread.

        Args:
            final: Also account for the time behind the last step; a step that is still open is given up.
        """
        with self._lock:
            offset_ns = ClockAnchor.now().offset_ns
            for marks in self._take(final):
                self._write_block(np.concatenate([self._carry, marks]), offset_ns)

    def _take(self, final: bool) -> Iterator[IntArray]:
        blocks: deque[Block] = self._recorder.blocks
        while blocks:
            block = blocks[0]
            closed = block.closed  # read before the marks: none come after it is closed
            new = block.marks[block.taken : len(block.marks) & ~1]
            marks = np.fromiter(new, dtype=np.int64, count=len(new)).reshape(-1, 2)
            if not (closed or final):
                marks = marks[: _last_end(marks[:, 0]) + 1]
            block.taken += marks.size
            if len(marks):
                yield marks
            if not closed:
                return
            blocks.popleft()

    def _write_block(self, marks: IntArray, offset_ns: int) -> None:
        what, when = marks[:, 0], marks[:, 1]
        # The last mark's phase has no end yet; it is carried over to the next block.
        self._carry = marks[-1:].copy()
        duration = np.diff(when)
        step_of, begins = _assign_steps(what)
        phase = _phases_after(what)[:-1]
        inside = step_of[:-1] != _NO_STEP
        between = ~inside
        if between.any():
            np.add.at(self.totals.between_ns, phase[between], duration[between])
        if not len(begins):
            return
        width = len(self._recorder.phases.names)
        cell = step_of[:-1][inside] * width + phase[inside]
        # Weights are floats, exact up to 2^53 ns: a hundred days.
        table = np.bincount(cell, weights=duration[inside], minlength=len(begins) * width)
        self._write_steps(table.astype(np.int64).reshape(-1, width), when[begins] + offset_ns)

    def _write_steps(self, table: IntArray, start_unix_ns: IntArray) -> None:
        count = len(table)
        numbers = range(self._next_step, self._next_step + count)
        step_ns = table.sum(axis=1) - table[:, ph.EVAL]
        columns: dict[str, Sequence[object]] = {
            "step": numbers,
            "time": (start_unix_ns / 1e9).round(6).tolist(),
            "epoch": self._epochs_of(numbers),
            "step_us": _to_us(step_ns),
        }
        columns.update(self._phase_columns(table))
        columns["capture"] = [self._capture.pop(step, "off") for step in numbers] if self._capture else ["off"] * count
        row = self._row_type(tuple(columns))
        lines = self._encoder.encode_lines(list(map(row, *columns.values())))
        self._write(lines)
        self._next_step += count
        self.totals.num_steps += count
        self.totals.step_ns += int(step_ns.sum())
        self.totals.in_steps_ns[: table.shape[1]] += table.sum(axis=0)

    def _phase_columns(self, table: IntArray) -> dict[str, Sequence[float]]:
        harness_ns = table[:, list(ph.HARNESS_PARTS)].sum(axis=1)
        columns: dict[str, Sequence[float]] = {}
        for name in _ALWAYS:
            ns = harness_ns if name == "harness" else table[:, ph.NAMES.index(name)]
            columns[f"{name}_us"] = _to_us(ns)
        used: npt.NDArray[np.bool_] = np.any(table, axis=0)
        for number, name in enumerate(self._recorder.phases.names):
            if used[number] and name not in _ALWAYS and number not in ph.HARNESS_PARTS and number != ph.BETWEEN:
                columns[f"{name}_us"] = _to_us(table[:, number])
        return columns

    def _epochs_of(self, numbers: range) -> list[int]:
        epochs: list[int] = []
        for step in numbers:
            if not self._epoch_starts or self._epoch_starts[0][0] > numbers[-1]:
                return epochs + [self._epoch] * (len(numbers) - len(epochs))
            while self._epoch_starts and self._epoch_starts[0][0] <= step:
                self._epoch = self._epoch_starts.popleft()[1]
            epochs.append(self._epoch)
        return epochs

    def _row_type(self, names: tuple[str, ...]) -> type[msgspec.Struct]:
        row = self._rows.get(names)
        if row is None:
            # User phases may hold '.' or '-', which no attribute can: the fields are numbered and renamed.
            fields = [(f"c{i}", object) for i in range(len(names))]
            rename = {f"c{i}": name for i, name in enumerate(names)}
            row = msgspec.defstruct("StepRow", fields, rename=rename, gc=False)
            self._rows[names] = row
        return row


def _to_us(ns: IntArray) -> list[float]:
    """Nanoseconds as microseconds with one decimal, the resolution of the step file."""
    us: list[float] = ((ns + 50) // 100 / 10).tolist()
    return us


def _phases_after(what: IntArray) -> IntArray:
    """The phase that begins with each mark."""
    begun = np.where(what == ph.STEP_BEGIN, ph.DATA, what)
    return np.maximum(np.where(what == ph.STEP_END, ph.LOOP, begun), ph.BETWEEN)


def _last_end(what: IntArray) -> int:
    """Where the last step ends, finished or not; -1 if none does."""
    ends = np.flatnonzero((what == ph.STEP_END) | (what == ph.STEP_ABORT))
    return int(ends[-1]) if len(ends) else -1


def _assign_steps(what: IntArray) -> tuple[IntArray, IntArray]:
    """Which finished step each mark belongs to (or none), and where each finished step begins."""
    begin = np.flatnonzero(what == ph.STEP_BEGIN)
    stop = np.flatnonzero((what == ph.STEP_END) | (what == ph.STEP_ABORT))
    # Each begin and the first end behind it; a step that is still open has none.
    behind = np.searchsorted(stop, begin)
    closed = behind < len(stop)
    begin, stop = begin[closed], stop[behind[closed]]
    finished = what[stop] == ph.STEP_END
    begin, stop = begin[finished], stop[finished]
    border = np.zeros(len(what), dtype=np.int64)
    border[begin] = 1
    number = np.cumsum(border) - 1
    border[stop] = -1
    return np.where(np.cumsum(border) > 0, number, _NO_STEP), begin
