"""Traces with answers computed by hand, and files that are damaged or hostile."""

from __future__ import annotations

import gzip
import json
import random
import re
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from harness.errors import TraceFormatError
from harness.trace.document import parse_document
from harness.trace.reader import load, to_columns
from harness.trace.spans import profiler_steps

BASE_NS = 1_790_857_026_000_000_000
SHARED_TRACES = Path(__file__).parents[4] / "shared" / "traces"


def kineto_event(ph: str, cat: str, name: str, pid: object, tid: object, ts: str, dur: str | None, args: str) -> str:
    """One event in the layout of torch's exporter; texts go in unescaped, as it does."""
    length = "" if dur is None else f',\n    "dur": {dur}'
    return (
        f'  {{\n    "ph": "{ph}",\n    "cat": "{cat}",\n    "name": "{name}",\n'
        f'    "pid": {json.dumps(pid)},\n    "tid": {json.dumps(tid)},\n    "ts": {ts}{length}\n    ,\n'
        f'    "args": {{\n      {args}\n    }}\n  }}'
    )


def kineto_trace(events: list[str], *, host: str = "vm", end: str = '\n  ],"traceName": "trace.json" }') -> bytes:
    head = (
        ' {\n    "schemaVersion": 1,\n    "deviceProperties": [],\n    \n      "trace_id": "ABC",\n'
        f'      "host_name": "{host}",\n    "displayTimeUnit": "ms",\n    "baseTimeNanoseconds": {BASE_NS},\n'
        '    "traceEvents": [\n    \n'
    )
    return (head + ",\n".join(events) + end).encode()


EVENTS = [
    kineto_event("X", "user_annotation", "ProfilerStep#7", 42, 42, "1000.000", "500.250", '"External id": 1'),
    kineto_event("X", "cpu_op", "aten::add", 42, 42, "1100.001", "0.999", '"External id": 2, "Ev Idx": 1'),
    kineto_event("i", "cpu_instant_event", "[memory]", 42, 42, "1100.500", None, '"Bytes": 64'),
    kineto_event("X", "Trace", "PyTorch Profiler (0)", "Spans", "PyTorch Profiler", "900.000", "700", '"Op": 0'),
    kineto_event("X", "cpu_op", "aten::add", 42, 43, "1200.000", "7.000", '"External id": 3'),
]


def write(path: Path, data: bytes | dict[str, object] | list[object]) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def test_columns_of_a_small_trace_are_the_numbers_in_the_file(tmp_path: Path) -> None:
    trace = load(write(tmp_path / "t.json", kineto_trace(EVENTS)))
    assert len(trace) == 5
    assert trace.ts_ns.tolist() == [1_000_000, 1_100_001, 1_100_500, 900_000, 1_200_000]
    assert trace.dur_ns.tolist() == [500_250, 999, 0, 700_000, 7_000]
    assert trace.ts_ns.dtype == trace.dur_ns.dtype == trace.pid.dtype == np.int64
    assert [trace.names[index] for index in trace.name] == [
        "ProfilerStep#7",
        "aten::add",
        "[memory]",
        "PyTorch Profiler (0)",
        "aten::add",
    ]
    assert [trace.cats[index] for index in trace.cat][:2] == ["user_annotation", "cpu_op"]
    assert [trace.pids[index] for index in trace.pid] == [42, 42, 42, "Spans", 42]
    assert [trace.tids[index] for index in trace.tid] == [42, 42, 42, "PyTorch Profiler", 43]
    assert trace.spans.tolist() == [True, True, False, True, True]
    assert trace.mask(cat="cpu_op").tolist() == [False, True, False, False, True]
    assert not trace.mask(cat="kernel").any()
    assert trace.args(1) == {"External id": 2, "Ev Idx": 1}
    assert trace.event(2)["ph"] == "i"
    assert trace.base_time_ns == BASE_NS
    assert trace.metadata()["host_name"] == "vm"
    assert trace.metadata()["traceName"] == "trace.json"
    assert (trace.skipped, trace.partial, trace.document.repaired) == (0, False, 0)


def test_times_of_a_late_clock_keep_their_nanoseconds(tmp_path: Path) -> None:
    events = [kineto_event("X", "cpu_op", "op", 1, 1, "4603812257562.473", "26959.094", "")]
    trace = load(write(tmp_path / "t.json", kineto_trace(events)))
    assert (trace.ts_ns[0], trace.dur_ns[0]) == (4_603_812_257_562_473, 26_959_094)


def test_gzip_is_told_by_content_and_may_have_several_members(tmp_path: Path) -> None:
    data = kineto_trace(EVENTS)
    half = len(data) // 2
    one = load(write(tmp_path / "a.json", gzip.compress(data)))
    two = load(write(tmp_path / "b.gz", gzip.compress(data[:half]) + gzip.compress(data[half:])))
    assert one.ts_ns.tolist() == two.ts_ns.tolist() == load(write(tmp_path / "c.gz", data)).ts_ns.tolist()
    assert not one.partial
    assert not two.partial


def test_a_long_and_repetitive_gzip_is_read_to_its_end(tmp_path: Path) -> None:
    events = [EVENTS[1]] * 30_000
    trace = load(write(tmp_path / "t.json.gz", gzip.compress(kineto_trace(events))))
    assert len(trace) == 30_000
    assert not trace.partial


def test_an_older_trace_has_no_base_and_whole_microseconds(tmp_path: Path) -> None:
    event = {
        "ph": "X",
        "cat": "cpu_op",
        "name": "a",
        "pid": 1,
        "tid": "stream 7",
        "ts": 1_665_000_000_000_123,
        "dur": 5,
    }
    trace = load(write(tmp_path / "t.json", {"schemaVersion": 1, "traceEvents": [event, {"ph": "M", "name": "n"}]}))
    assert trace.base_time_ns is None
    assert trace.ts_ns.tolist() == [1_665_000_000_000_123_000, 0]
    assert trace.tids == ("stream 7", "")


def test_a_bare_list_of_events_is_a_trace(tmp_path: Path) -> None:
    trace = load(write(tmp_path / "t.json", [{"ph": "X", "name": "a", "ts": 1, "dur": 2}]))
    assert trace.ts_ns.tolist() == [1000]


def test_an_empty_list_of_events_is_an_empty_trace(tmp_path: Path) -> None:
    trace = load(write(tmp_path / "t.json", {"traceEvents": []}))
    assert len(trace) == 0
    assert not trace.spans.any()
    assert profiler_steps(trace) == []


def test_events_with_senseless_fields_are_left_out_and_counted(tmp_path: Path) -> None:
    good = {"ph": "X", "name": "good", "ts": 1, "dur": 2}
    bad = [
        good | {"dur": -1},
        good | {"ts": 1e300},
        good | {"ts": "1"},
        good | {"dur": None},
        good | {"name": ["a"]},
        good | {"pid": 1.5},
        good | {"ts": 10**30},
        {"ph": "X", "name": "no length", "ts": 1},
        "no object",
        None,
        7,
    ]
    trace = load(write(tmp_path / "t.json", {"traceEvents": [good, *bad, good]}))
    assert trace.position.tolist() == [0, 12]
    assert trace.skipped == len(bad)
    assert trace.event(1) == good


def test_bare_nan_costs_only_the_event_it_times(tmp_path: Path) -> None:
    text = (
        b'{"traceEvents": [{"ph": "X", "name": "a", "ts": 1, "dur": 2, "args": {"x": NaN}},'
        b' {"ph": "X", "name": "b", "ts": NaN, "dur": 2}, {"ph": "X", "name": "c", "ts": 3, "dur": 2}]}'
    )
    trace = load(write(tmp_path / "t.json", text))
    assert [trace.names[index] for index in trace.name] == ["a", "c"]
    assert trace.args(0) == {"x": None}
    assert trace.skipped == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no trace"),
        (b"not json", "no trace"),
        (b"{}", "no key traceEvents"),
        (b'{"traceEvents": 7}', "no trace"),
        (b"[" * 100_000, "no trace"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"9" * 5000, "no trace"),
        (b'{"baseTimeNanoseconds": "soon", "traceEvents": []}', "baseTimeNanoseconds"),
        (b'{"baseTimeNanoseconds": ' + b"9" * 5000 + b', "traceEvents": []}', "baseTimeNanoseconds"),
        (gzip.compress(b"hello"), "no trace"),
        (b"\x1f\x8b\x08broken", "no trace"),
        (b"\xff\xfe\x00", "no trace"),
    ],
)
def test_what_is_no_trace_is_an_error_with_the_file_and_the_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    path = write(tmp_path / "bad.json", data)
    with pytest.raises(TraceFormatError, match=reason) as error:
        load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("path", ["missing.json", "."])
def test_a_file_that_cannot_be_opened_is_an_error_with_its_name(tmp_path: Path, path: str) -> None:
    with pytest.raises(TraceFormatError, match="cannot be read"):
        load(tmp_path / path)


def test_nesting_in_one_event_costs_only_that_event(tmp_path: Path) -> None:
    deep = kineto_event("X", "cpu_op", "deep", 1, 1, "1.000", "1.000", '"a": ' + "[" * 50_000 + "]" * 50_000)
    trace = load(write(tmp_path / "t.json", kineto_trace([EVENTS[0], deep, EVENTS[1]])))
    assert {trace.names[index] for index in trace.name} >= {"ProfilerStep#7", "aten::add"}


def test_a_gzip_bomb_is_refused_early(tmp_path: Path) -> None:
    bomb = gzip.compress(b'{"traceEvents": [' + b" " * 80_000_000)
    assert len(bomb) < 100_000
    path = write(tmp_path / "bomb.json.gz", bomb)
    with pytest.raises(TraceFormatError, match=re.escape(str(path)) + ".*limit"):
        load(path)


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    data = kineto_trace(EVENTS)
    for name, content in (("a.json", data), ("a.json.gz", gzip.compress(data))):
        path = write(tmp_path / name, content)
        with pytest.raises(TraceFormatError, match="limit"):
            load(path, max_bytes=len(data) - 1)
        assert len(load(path, max_bytes=len(data))) == 5


@pytest.mark.parametrize("layout", ["kineto", "one line"])
def test_a_truncated_file_gives_its_whole_events_and_says_partial(tmp_path: Path, layout: str) -> None:
    data = kineto_trace(EVENTS) if layout == "kineto" else json.dumps(json.loads(kineto_trace(EVENTS))).encode()
    whole = json.loads(data)["traceEvents"]
    for cut in range(data.index(b'"traceEvents": [') + 16, data.rindex(b"]"), 7):
        trace = load(write(tmp_path / "t.json", data[:cut]))
        assert trace.partial
        assert [trace.event(row) for row in range(len(trace))] == whole[: len(trace)]
        assert len(trace) >= data[:cut].count(b"\n  },") if layout == "kineto" else True
    assert len(trace) >= 4


def test_a_truncated_gzip_gives_what_was_packed_and_says_partial(tmp_path: Path) -> None:
    random.seed(1)
    events = [kineto_event("X", "cpu_op", f"op{random.random()}", 1, 1, f"{i}.000", "0.500", "") for i in range(3000)]
    packed = gzip.compress(kineto_trace(events), 1)
    trace = load(write(tmp_path / "t.json.gz", packed[: len(packed) // 2]))
    assert trace.partial
    assert 1000 < len(trace) < 2000
    assert trace.ts_ns.tolist() == [i * 1000 for i in range(len(trace))]
    only_the_end_mark_missing = load(write(tmp_path / "u.json.gz", packed[:-8]))
    assert only_the_end_mark_missing.partial
    assert len(only_the_end_mark_missing) == 3000


def test_ten_thousand_damaged_traces_raise_nothing_but_a_format_error(tmp_path: Path) -> None:
    rng = random.Random(20261101)
    seeds = [kineto_trace(EVENTS[:3]), json.dumps(json.loads(kineto_trace(EVENTS[:3]))).encode()]
    seeds.append(gzip.compress(seeds[0]))
    pieces = [
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b"NaN",
        b"\x00",
        b"\xff",
        b"-",
        b"9" * 400,
        b"\n  },\n  {\n",
    ]
    path = tmp_path / "mutant.json"
    outcomes = {"read": 0, "refused": 0}
    start = time.process_time()
    for number in range(10_000):
        data = bytearray(seeds[number % 3])
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[place] = rng.randrange(256)
            elif kind == 1:
                data[place:place] = rng.choice(pieces)
            elif kind == 2:
                del data[place : place + rng.randint(1, 40)]
            else:
                del data[place:]
            data = data or bytearray(b" ")
        try:
            if number % 3 == 2:
                path.write_bytes(data)
                trace = load(path)
            else:  # the same without the file, which takes most of the time
                trace = to_columns(parse_document(bytes(data), source="mutant"), source="mutant")
            profiler_steps(trace)
            trace.metadata()
            if len(trace):
                trace.args(0)
            outcomes["read"] += 1
        except TraceFormatError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 1000, outcomes
    assert time.process_time() - start < 5


def _exact_ns(us: float) -> int:
    return round(Fraction(us) * 1000)


@pytest.mark.skipif(not SHARED_TRACES.is_dir(), reason="the shared GPU traces are not here")
@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("gpu_128ranks_rank0_sampled", [551, 552]),
        ("gpu_diff_control", [1009, 1010, 1011, 1012, 1013, 1014]),
        ("gpu_train_5steps_rank0", [101, 102, 103, 104, 105]),
        ("h100_qwen_stacks", [6]),
    ],
)
def test_traces_of_gpus_agree_with_the_json_module(name: str, steps: list[int]) -> None:
    path = SHARED_TRACES / f"{name}.pt.trace.json.gz"
    trace = load(path)
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert len(trace) == len(events)
    assert (trace.skipped, trace.partial) == (0, False)
    assert trace.ts_ns.tolist() == [_exact_ns(event.get("ts", 0)) for event in events]
    assert [trace.names[index] for index in trace.name] == [event["name"] for event in events]
    assert [step.step for step in profiler_steps(trace)] == steps
