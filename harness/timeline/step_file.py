"""From marks to `steps-rank{rank}.jsonl`: the reading side of the recorder.

Runs on the writer thread, a block at a time, with numpy: a step costs about a microsecond here. Also keeps the sums
from which the run's own cost is reported.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

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
            # All blocks at once: an array operation that runs a few times a second is cold and takes 20 to 50 µs.
            taken = list(self._take(final))
            if taken:
                marks = np.fromiter(chain.from_iterable(taken), dtype=np.int64, count=sum(map(len, taken)))
                self._write_marks(np.concatenate([self._carry, marks.reshape(-1, 2)]), ClockAnchor.now().offset_ns)

    def _take(self, final: bool) -> Iterator[list[int]]:
        blocks: deque[Block] = self._recorder.blocks
        while blocks:
            block = blocks[0]
            closed = block.closed  # read before the marks: none come after it is closed
            marks = block.marks
            end = len(marks) & ~1 if closed or final else _end_of_steps(marks, block.taken)
            new = marks[block.taken : end]
            block.taken = end
            if new:
                yield new
            if not closed:
                return
            blocks.popleft()

    def _write_marks(self, marks: IntArray, offset_ns: int) -> None:
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
        names, times_ns = self._columns(table)
        columns: list[Sequence[object]] = [
            numbers,
            (start_unix_ns / 1e9).round(6).tolist(),
            self._epochs_of(numbers),
            # Microseconds with one decimal, the resolution of the step file.
            *((times_ns + 50) // 100 / 10).tolist(),
            [self._capture.pop(step, "off") for step in numbers] if self._capture else ["off"] * count,
        ]
        row = self._row_type(("step", "time", "epoch", *names, "capture"))
        self._write(self._encoder.encode_lines(list(map(row, *columns))))
        self._next_step += count
        self.totals.num_steps += count
        self.totals.step_ns += int(times_ns[0].sum())
        self.totals.in_steps_ns[: table.shape[1]] += table.sum(axis=0)

    def _columns(self, table: IntArray) -> tuple[list[str], IntArray]:
        """Names of the columns of times, and the times, ns, shape (columns, steps); the first is the step's length."""
        own_parts = list(ph.HARNESS_PARTS)
        used: npt.NDArray[np.bool_] = np.any(table, axis=0)
        names = [*_ALWAYS]
        numbers = [ph.NAMES.index(name) if name != "harness" else own_parts[0] for name in _ALWAYS]
        for number, name in enumerate(self._recorder.phases.names):
            if used[number] and name not in _ALWAYS and number not in ph.HARNESS_PARTS and number != ph.BETWEEN:
                names.append(name)
                numbers.append(number)
        times_ns = table.T[[ph.EVAL, *numbers]]
        times_ns[0] = table.sum(axis=1) - times_ns[0]
        times_ns[1 + _ALWAYS.index("harness")] = table[:, own_parts].sum(axis=1)
        return [f"{name}_us" for name in ("step", *names)], times_ns

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


def _phases_after(what: IntArray) -> IntArray:
    """The phase that begins with each mark."""
    begun = np.where(what == ph.STEP_BEGIN, ph.DATA, what)
    return np.maximum(np.where(what == ph.STEP_END, ph.LOOP, begun), ph.BETWEEN)


def _end_of_steps(marks: Sequence[int], start: int) -> int:
    """Behind the last mark that ends a step, finished or not; `start` if none does from there on."""
    at = (len(marks) & ~1) - 2
    while at >= start and marks[at] not in (ph.STEP_END, ph.STEP_ABORT):
        at -= 2
    return max(at + 2, start)


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
