"""Loads a torch trace into numpy columns, so that an analysis costs array operations and not Python objects.

Reads what torch.profiler wrote from 1.13 on, finished by this package or not. Times are integer nanoseconds;
texts and process and thread ids are numbers into small tables. Arguments stay JSON text until asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.errors import TraceFormatError
from harness.trace.document import MAX_BYTES, Document, read_document
from harness.trace.salvage import DECODE_ERRORS
from harness.units import NS_PER_US

Int64 = NDArray[np.int64]
_BLOCK_EVENTS = 16_384
_MAX_US = 9.2e15
"""2**63 ns in µs, rounded down: times beyond it are nonsense."""


class _Event(msgspec.Struct, gc=False):
    """The fields of an event that become columns."""

    ph: str = ""
    name: str = ""
    cat: str = ""
    pid: int | str | None = ""
    tid: int | str | None = ""
    ts: float = 0.0
    dur: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trace:
    """A trace as columns: row i of every column is one event, in file order.

    Example:
        >>> trace = load("runs/foo/traces/rank0.000012.pt.trace.json.gz")  # doctest: +SKIP
        >>> steps = [step.step for step in profiler_steps(trace)]  # doctest: +SKIP
    """

    source: str
    """The file it came from."""
    document: Document
    """The text of the events and of the top-level keys."""
    position: Int64
    """Index of the event in `document.events`."""
    ts_ns: Int64
    """Start, ns after `base_time_ns`; 0 where the event has no time."""
    dur_ns: Int64
    """Length, ns; 0 where the event has none."""
    ph: Int64
    """Index into `phs`."""
    name: Int64
    """Index into `names`."""
    cat: Int64
    """Index into `cats`."""
    pid: Int64
    """Index into `pids`."""
    tid: Int64
    """Index into `tids`."""
    phs: tuple[str, ...]
    """Event types: `X` span, `M` metadata, `C` counter, `i` instant, `s` and `f` flow."""
    names: tuple[str, ...]
    cats: tuple[str, ...]
    """Categories; "" is that of an event without one."""
    pids: tuple[int | str, ...]
    """Process ids: a number, or a word for kineto's own tracks (`Spans`, `Traces`)."""
    tids: tuple[int | str, ...]
    base_time_ns: int | None
    """Unix time of ts 0, ns. None for traces of torch before 2.4, whose `ts_ns` is Unix time itself."""
    skipped: int
    """Events left out: a field of a wrong type, or a time that makes no sense (no length, a negative one)."""

    def __len__(self) -> int:
        return len(self.position)

    @property
    def partial(self) -> bool:
        """Whether events are missing that the file once had, or was to have."""
        return self.document.truncated or self.document.dropped > 0

    @property
    def spans(self) -> NDArray[np.bool_]:
        """Mask of the events with a start and a length (`ph` X)."""
        return np.equal(self.ph, _index(self.phs, "X"))

    def mask(self, *, cat: str) -> NDArray[np.bool_]:
        """Mask of the events of one category."""
        return np.equal(self.cat, _index(self.cats, cat))

    def event(self, row: int) -> dict[str, object]:
        """All fields of one event, decoded from its text."""
        raw = self.document.events[self.position[row]]
        return msgspec.json.decode(raw, type=dict[str, object])

    def args(self, row: int) -> dict[str, object]:
        """The arguments of one event; empty if it has none."""
        args = self.event(row).get("args")
        return args if isinstance(args, dict) else {}

    def metadata(self) -> dict[str, object]:
        """The top-level keys other than `traceEvents`, decoded (values that cannot be are left out)."""
        decoded: dict[str, object] = {}
        for key, raw in self.document.header.items():
            try:
                decoded[key] = msgspec.json.decode(raw)
            except DECODE_ERRORS:
                continue
        return decoded


def load(path: Path | str, *, max_bytes: int = MAX_BYTES) -> Trace:
    """Read a trace file into columns.

    Damaged files are read as far as possible: see `Trace.partial` and `Trace.skipped`.

    Args:
        path: A `.json` or gzip file of torch.profiler.
        max_bytes: Refuse what is larger than this when uncompressed.

    Raises:
        TraceFormatError: It cannot be read, is too large or is no trace.
    """
    return to_columns(read_document(Path(path), max_bytes=max_bytes), source=str(path))


def to_columns(document: Document, *, source: str) -> Trace:
    """Make columns of a document.

    Args:
        document: The pieces of the trace.
        source: The file it came from.

    Raises:
        TraceFormatError: `baseTimeNanoseconds` is not a number of ns.
    """
    builder = _Builder()
    for start in range(0, len(document.events), _BLOCK_EVENTS):
        builder.add(start, document.events[start : start + _BLOCK_EVENTS])
    return builder.build(document, source)


class _Table:
    """Numbers for values, in order of appearance."""

    def __init__(self) -> None:
        self._numbers: dict[int | str | None, int] = {}

    def numbers(self, values: list[int | str | None]) -> Int64:
        known = self._numbers
        for value in values:
            if value not in known:
                known[value] = len(known)
        return np.fromiter((known[value] for value in values), np.int64, len(values))

    def values(self) -> tuple[int | str, ...]:
        return tuple("" if value is None else value for value in self._numbers)

    def texts(self) -> tuple[str, ...]:
        return tuple(str(value) for value in self._numbers)


class _Builder:
    """Collects the columns block by block; the decoded objects of a block are gone before the next."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(_Event).decode
        self._tables = {field: _Table() for field in ("ph", "name", "cat", "pid", "tid")}
        self._columns: dict[str, list[Int64]] = {
            field: [np.empty(0, np.int64)] for field in ("position", "ts_ns", "dur_ns", *self._tables)
        }
        self._skipped = 0

    def add(self, start: int, raws: list[msgspec.Raw]) -> None:
        positions, events = self._decode_block(start, raws)
        ts = np.array([event.ts for event in events], np.float64)
        dur = np.array([np.nan if event.dur is None else event.dur for event in events], np.float64)
        is_span = np.array([event.ph == "X" for event in events], np.bool_)
        dur[~is_span] = 0.0
        good = (np.abs(ts) < _MAX_US) & (dur >= 0) & (dur < _MAX_US)  # NaN compares false
        self._skipped += int(len(raws) - np.count_nonzero(good))
        self._columns["position"].append(np.array(positions, np.int64)[good])
        self._columns["ts_ns"].append(_to_ns(ts[good]))
        self._columns["dur_ns"].append(_to_ns(dur[good]))
        kept = [events[row] for row in np.flatnonzero(good).tolist()]
        for field, table in self._tables.items():
            self._columns[field].append(table.numbers([getattr(event, field) for event in kept]))

    def _decode_block(self, start: int, raws: list[msgspec.Raw]) -> tuple[list[int], list[_Event]]:
        try:
            return list(range(start, start + len(raws))), [self._decode(raw) for raw in raws]
        except DECODE_ERRORS:
            pass
        positions, events = [], []
        for position, raw in enumerate(raws, start):
            try:
                events.append(self._decode(raw))
            except DECODE_ERRORS:
                continue
            positions.append(position)
        return positions, events

    def build(self, document: Document, source: str) -> Trace:
        column = {field: np.concatenate(blocks) for field, blocks in self._columns.items()}
        return Trace(
            source=source,
            document=document,
            phs=self._tables["ph"].texts(),
            names=self._tables["name"].texts(),
            cats=self._tables["cat"].texts(),
            pids=self._tables["pid"].values(),
            tids=self._tables["tid"].values(),
            base_time_ns=_base_time_ns(document, source),
            skipped=self._skipped,
            **column,
        )


def _to_ns(us: NDArray[np.float64]) -> Int64:
    """µs with three decimals as whole ns. Split first: Unix time in ns is more than a float holds exactly."""
    whole = np.floor(us)
    return whole.astype(np.int64) * NS_PER_US + np.rint((us - whole) * NS_PER_US).astype(np.int64)


def _base_time_ns(document: Document, source: str) -> int | None:
    raw = document.header.get("baseTimeNanoseconds")
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=int)
    except DECODE_ERRORS as error:
        raise TraceFormatError(f"{source}: baseTimeNanoseconds is not a number of ns: {error}") from error


def _index(table: tuple[str, ...], value: str) -> int:
    """Number of a value in a table; -1, which no row has, if it is not there."""
    return table.index(value) if value in table else -1
