"""Makes the slices of every thread nest, as viewers need them to.

With `with_stack=True` torch records a Python call such as `<built-in method _record_function_enter_new>` that
starts before the annotation it opens and ends inside it. A slice that only partly overlaps another is not
valid, and Perfetto before v57 then drops annotations: all of them in a trace where each is opened like that.
So the less important slice of such a pair is shortened, where it loses least; annotations give way last.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import msgspec
import numpy as np

from harness.trace.reader import Int64, Trace

_THREAD_CATEGORIES = frozenset(
    {
        "user_annotation",
        "cpu_op",
        "python_function",
        "cuda_runtime",
        "cuda_driver",
        "xpu_runtime",
        "mtia_runtime",
        "privateuse1_runtime",
    }
)
"""Calls on a thread of the CPU. Device work may overlap where a device does things at once: left alone."""
_RANK = {"user_annotation": 2, "cpu_op": 1}
"""What keeps its times when two slices overlap; everything else (Python calls, runtime calls) is 0."""

Change = tuple[int, int]
"""New start and end, ns."""


def clip_overlaps(trace: Trace) -> dict[int, Change]:
    """Find how to shorten slices so that on every thread two slices are apart or one lies in the other.

    Returns:
        Row of the trace to its new start and end. Empty for a trace that is right already.
    """
    changes: dict[int, Change] = {}
    for rows in _threads(trace):
        start = trace.ts_ns[rows]
        end = start + trace.dur_ns[rows]
        order = np.lexsort((-end, start))
        rows, start, end = rows[order], start[order], end[order]
        if _nests(start, end):
            continue
        rank = [_RANK.get(trace.cats[cat], 0) for cat in trace.cat[rows].tolist()]
        for index, change in _Clipper(start.tolist(), end.tolist(), rank).run().items():
            changes[int(rows[index])] = change
    return changes


def rewrite_times(raw: msgspec.Raw, change: Change) -> msgspec.Raw:
    """The text of an event with another start and length and everything else as it was."""
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    start, end = change
    fields["ts"] = msgspec.Raw(microseconds(start))
    fields["dur"] = msgspec.Raw(microseconds(end - start))
    return msgspec.Raw(msgspec.json.encode(fields))


def microseconds(ns: int) -> bytes:
    """Nanoseconds as the number a trace has for them: µs with three decimals, exact for any size."""
    sign, ns = (b"-", -ns) if ns < 0 else (b"", ns)
    return b"%s%d.%03d" % (sign, ns // 1000, ns % 1000)


def _threads(trace: Trace) -> Iterator[Int64]:
    """Rows of the slices of each (pid, tid) that stands for a thread of the CPU."""
    calls = [index for index, name in enumerate(trace.cats) if name in _THREAD_CATEGORIES]
    rows = np.flatnonzero(trace.spans & np.isin(trace.cat, calls))
    if rows.size == 0:
        return
    track = trace.pid[rows] * len(trace.tids) + trace.tid[rows]
    order = np.argsort(track, kind="stable")
    borders = np.flatnonzero(np.diff(track[order])) + 1
    yield from np.split(rows[order], borders)


def _nests(start: Int64, end: Int64) -> bool:
    """Whether slices sorted by (start, longest first) nest."""
    stack: list[int] = []
    for one_start, one_end in zip(start.tolist(), end.tolist(), strict=True):
        while stack and stack[-1] <= one_start:
            stack.pop()
        if stack and one_end > stack[-1]:
            return False
        stack.append(one_end)
    return True


class _Clipper:
    """One pass over a thread's slices in order of start, with a stack of those that are open."""

    def __init__(self, start: list[int], end: list[int], rank: list[int]) -> None:
        self._start, self._end, self._rank = start, end, rank
        self._stack: list[int] = []
        self._later: list[tuple[int, int, int]] = []
        self._changed: set[int] = set()

    def run(self) -> dict[int, Change]:
        for index in range(len(self._start)):
            while self._later and self._later[0] < (self._start[index], -self._end[index], index):
                self._open(heapq.heappop(self._later)[2])
            self._open(index)
        while self._later:
            self._open(heapq.heappop(self._later)[2])
        return {index: (self._start[index], self._end[index]) for index in self._changed}

    def _open(self, index: int) -> None:
        """Put a slice on the stack, after the overlaps with what is open are settled."""
        while self._stack:
            outer = self._stack[-1]
            if self._end[outer] <= self._start[index]:
                self._stack.pop()
            elif self._end[outer] >= self._end[index]:
                break
            elif self._rank[outer] < self._rank[index]:
                self._end[outer] = self._start[index]
                self._changed.add(outer)
            elif self._end[outer] - self._start[index] < self._end[index] - self._end[outer]:
                # Most of it lies behind the outer one: let it start there, in its place in the order.
                self._start[index] = self._end[outer]
                self._changed.add(index)
                heapq.heappush(self._later, (self._start[index], -self._end[index], index))
                return
            else:
                self._end[index] = self._end[outer]
                self._changed.add(index)
        self._stack.append(index)
