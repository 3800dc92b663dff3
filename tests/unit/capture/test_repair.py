"""Slices that overlap partly, planted and at random."""

from __future__ import annotations

import json
import random

import msgspec
import pytest

from harness.capture.repair import clip_overlaps, microseconds, rewrite_times
from harness.trace.document import Document
from harness.trace.reader import Trace, to_columns

Slice = tuple[str, int, int]
"""Category, start, end in µs."""


def trace_of(slices: list[Slice], *, tids: list[int] | None = None) -> Trace:
    tids = tids or [1] * len(slices)
    raws = [
        {"ph": "X", "cat": cat, "name": f"{cat} {i}", "pid": 1, "tid": tid, "ts": start, "dur": end - start}
        for i, ((cat, start, end), tid) in enumerate(zip(slices, tids, strict=True))
    ]
    events = [msgspec.Raw(msgspec.json.encode(raw)) for raw in raws]
    return to_columns(Document(header={}, events=events), source="test")


def after(slices: list[Slice]) -> list[Slice]:
    changes = clip_overlaps(trace_of(slices))
    found = []
    for row, (cat, start, end) in enumerate(slices):
        start_ns, end_ns = changes.get(row, (start * 1000, end * 1000))
        found.append((cat, start_ns // 1000, end_ns // 1000))
    return found


def overlapping_pairs(slices: list[Slice]) -> int:
    return sum(a[1] < b[1] < a[2] < b[2] for a in slices for b in slices)


def test_a_call_that_opens_an_annotation_ends_where_the_annotation_starts() -> None:
    slices = [
        ("python_function", 0, 30),  # __enter__
        ("python_function", 2, 25),  # _record_function_enter_new
        ("user_annotation", 10, 100),
        ("cpu_op", 40, 50),
    ]
    assert after(slices) == [
        ("python_function", 0, 10),
        ("python_function", 2, 10),
        ("user_annotation", 10, 100),
        ("cpu_op", 40, 50),
    ]


def test_a_call_that_closes_an_annotation_keeps_its_longer_part() -> None:
    slices: list[Slice] = [
        ("user_annotation", 0, 100),
        ("python_function", 95, 300),
        ("python_function", 110, 120),
    ]
    assert after(slices)[1:] == [("python_function", 100, 300), ("python_function", 110, 120)]
    slices = [("user_annotation", 0, 100), ("python_function", 60, 105)]
    assert after(slices)[1:] == [("python_function", 60, 100)]


def test_a_call_between_two_annotations_lies_between_them() -> None:
    slices: list[Slice] = [
        ("user_annotation", 0, 100),
        ("python_function", 95, 300),
        ("user_annotation", 290, 400),
    ]
    assert after(slices)[1] == ("python_function", 100, 290)


def test_two_annotations_that_overlap_are_cut_where_less_is_lost() -> None:
    assert after([("user_annotation", 0, 10), ("user_annotation", 8, 100)]) == [
        ("user_annotation", 0, 10),
        ("user_annotation", 10, 100),
    ]
    assert after([("user_annotation", 0, 100), ("user_annotation", 8, 101)])[1] == ("user_annotation", 8, 100)


@pytest.mark.parametrize(
    "slices",
    [
        [],
        [("cpu_op", 0, 0)],
        [("cpu_op", 0, 10), ("cpu_op", 10, 20), ("cpu_op", 0, 10), ("python_function", 0, 20)],
        [("user_annotation", 5, 10), ("python_function", 5, 7), ("cpu_op", 7, 10)],
        [("kernel", 0, 10), ("kernel", 5, 15)],
        [("Trace", 0, 10), ("cpu_op", 5, 15)],
    ],
)
def test_a_trace_that_is_right_is_left_alone(slices: list[Slice]) -> None:
    assert clip_overlaps(trace_of(slices)) == {}


def test_slices_of_two_threads_do_not_overlap() -> None:
    assert clip_overlaps(trace_of([("cpu_op", 0, 10), ("cpu_op", 5, 15)], tids=[1, 2])) == {}


def test_random_slices_nest_afterwards_and_nested_annotations_keep_their_times() -> None:
    rng = random.Random(7)
    repaired = 0
    for _ in range(1500):
        steps = [("user_annotation", start, start + 40) for start in range(0, 200, 50)]
        phases = [("user_annotation", start + 5, start + 30) for start in range(0, 200, 50)]
        calls = []
        for _ in range(rng.randint(1, 12)):
            start = rng.randrange(200)
            calls.append((rng.choice(["cpu_op", "python_function"]), start, start + rng.randint(0, 80)))
        slices = [*steps, *phases, *calls]
        rng.shuffle(slices)
        found = after(slices)
        assert overlapping_pairs(found) == 0, slices
        for before, now in zip(slices, found, strict=True):
            assert now[0] != "user_annotation" or now == before
            assert before[1] <= now[1] <= now[2] <= before[2]
        repaired += found != slices
    assert repaired > 1000


def test_a_rewritten_event_keeps_every_other_field_and_the_order() -> None:
    raw = msgspec.Raw(
        b'{"ph": "X", "name": "a \\"dur\\": 1", "ts": 1.000, "dur": 2.000, '
        b'"args": {"dur": 9, "n": 12345678901234567890}}'
    )
    found = bytes(rewrite_times(raw, (4_603_812_257_562_473, 4_603_812_257_562_474)))
    assert b'"ts":4603812257562.473,"dur":0.001' in found
    assert b"12345678901234567890" in found
    assert list(json.loads(found)) == ["ph", "name", "ts", "dur", "args"]
    assert json.loads(found)["args"]["dur"] == 9


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, b"0.000"),
        (1, b"0.001"),
        (-1, b"-0.001"),
        (-1500, b"-1.500"),
        (10**18 + 7, b"1000000000000000.007"),
    ],
)
def test_microseconds_have_three_decimals_and_no_rounding(ns: int, text: bytes) -> None:
    assert microseconds(ns) == text
