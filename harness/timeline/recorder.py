"""The hot path: clock readings at phase borders, appended to a list and nothing else.

The training thread appends pairs (what begins now, `perf_counter_ns`) to a list; everything that can be
derived from them is derived later, in blocks, by the writer thread (`timeline.step_file`). There is no lock: a block
has one writer, the training thread, and one reader, which takes what lies before the last end of a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from types import TracebackType
from typing import Protocol

from harness.timeline.phases import BETWEEN, STEP_ABORT, STEP_BEGIN, STEP_END, PhaseTable, phase_after

BLOCK_MARKS = 8192
"""Integers in a block before a new one is begun: about 500 steps."""
MAX_BLOCKS = 64
"""Blocks that may wait for the writer before the training thread writes them itself."""


class Annotator(Protocol):
    """Puts the current phase into a recording torch profiler."""

    def switch(self, *phase_names: str) -> None:
        """Have ranges open for these phases, each inside the one before, and for no others."""

    def close(self) -> None:
        """End all ranges that are open."""


class Block:
    """Marks of some hundred steps: `[what, perf_ns, what, perf_ns, …]`."""

    __slots__ = ("closed", "marks", "taken")

    def __init__(self) -> None:
        # A list and not an array: appending to an array costs five times as much between two steps of training.
        self.marks: list[int] = []
        self.taken = 0
        self.closed = False


class Recorder:
    """Marks phase borders on the training thread.

    Only the training thread calls it. Step numbers and epochs are the loop's; the recorder counts nothing, it only
    stores what began when.
    """

    __slots__ = ("_append", "_block", "_marks", "_stack", "_suspended", "annotator", "blocks", "on_overflow", "phases")

    def __init__(self, phases: PhaseTable) -> None:
        self.phases = phases
        self.blocks: deque[Block] = deque()
        self.annotator: Annotator | None = None
        self.on_overflow: Callable[[], None] | None = None
        self._stack: list[int] = []
        self._suspended: tuple[int, int] | None = None
        self._new_block()
        self.mark(BETWEEN)

    def mark(self, what: int) -> None:
        """A phase, or with STEP_BEGIN, STEP_END and STEP_ABORT a step, begins or ends now.

        The one function every border goes through: what is called once in a step is cold, the second call is not.
        """
        append = self._append
        append(what)
        append(perf_counter_ns())
        if self.annotator is not None:
            self._annotate(self.annotator, what)

    def abort_step(self) -> None:
        """The step that was begun, or suspended, never was."""
        self._stack.clear()
        self._suspended = None
        self.mark(STEP_ABORT)

    def suspend_step(self) -> None:
        """The loop's body was left: the step ends here, unless it turns out that an exception ended it."""
        self._stack.clear()
        self._suspended = (len(self._marks), perf_counter_ns())
        if self.annotator is not None:
            self.annotator.close()
            self.annotator = None

    def end_suspended_step(self) -> None:
        """No exception: what follows belongs to no step."""
        assert self._suspended is not None, "no step was suspended"
        index, now_ns = self._suspended
        # Before the marks made since: they lie between two steps. The reader has taken none of them, as the step
        # before this one was the last that ended. What follows is the user's own time.
        self._marks[index:index] = (STEP_END, now_ns, BETWEEN, now_ns)
        self._suspended = None

    def roll(self) -> None:
        """Begin a new block if this one is full; called between two steps, now and then."""
        if len(self._marks) > BLOCK_MARKS:
            self._block.closed = True
            self._new_block()
            if len(self.blocks) > MAX_BLOCKS and self.on_overflow is not None:
                self.on_overflow()

    def enter(self, phase: int) -> None:
        """A phase begins inside the current one, which goes on after `leave`."""
        self._stack.append(self.current)
        self.mark(phase)

    def leave(self) -> None:
        """Back to the phase that `enter` interrupted."""
        # Empty after abort_step: a body that raised leaves its phases after the step was given up.
        if self._stack:
            self.mark(self._stack.pop())

    @property
    def current(self) -> int:
        """The phase that time goes to now."""
        marks = self._marks
        return phase_after(marks[-2]) if marks else BETWEEN

    @property
    def waits_for_data(self) -> bool:
        """Whether a step was begun and its batch is not there yet."""
        marks = self._marks
        return bool(marks) and marks[-2] == STEP_BEGIN

    def last_step_ns(self) -> int:
        """How long the last step took, or has taken so far; 0 where a new block was begun since."""
        marks = self._marks
        for at in range(len(marks) - 2, -1, -2):
            if marks[at] == STEP_BEGIN:
                ends = (marks[i + 1] for i in range(at + 2, len(marks), 2) if marks[i] in (STEP_END, STEP_ABORT))
                return next(ends, perf_counter_ns()) - marks[at + 1]
        return 0

    def _annotate(self, annotator: Annotator, what: int) -> None:
        labels = self.phases.labels
        # A phase that another one interrupts stays open around it: what the user opened in it must not stick out.
        # Between two steps no range is open.
        now = BETWEEN if what == STEP_END else phase_after(what)
        shown = [labels[phase] for phase in (*self._stack, now)]
        annotator.switch(*[label for label in shown if label is not None])

    def _new_block(self) -> None:
        self._block = Block()
        self._marks = self._block.marks
        self._append = self._marks.append
        self.blocks.append(self._block)


class Phase:
    """`with run.phase("forward"):` — kept and used again for each step."""

    __slots__ = ("_number", "_recorder")

    def __init__(self, recorder: Recorder, number: int) -> None:
        self._recorder = recorder
        self._number = number

    # Both are `enter` and `leave` written out for the usual case: four functions less that a step has made cold.

    def __enter__(self) -> None:
        recorder = self._recorder
        marks = recorder._marks
        if recorder.annotator is not None or not marks or marks[-2] < BETWEEN:
            recorder.enter(self._number)
            return
        recorder._stack.append(marks[-2])
        append = recorder._append
        append(self._number)
        append(perf_counter_ns())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        recorder = self._recorder
        stack = recorder._stack
        if recorder.annotator is not None or not stack:
            recorder.leave()
            return
        append = recorder._append
        append(stack.pop())
        append(perf_counter_ns())
