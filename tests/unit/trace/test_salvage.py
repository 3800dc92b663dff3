"""Invalid JSON of torch's exporter: labels that it does not escape."""

from __future__ import annotations

import json

import pytest

from harness.trace.document import parse_document
from harness.trace.salvage import salvage

HEAD = (
    ' {\n    "schemaVersion": 1,\n    "host_name": "%s",\n    "baseTimeNanoseconds": 5,\n    "traceEvents": [\n    \n'
)
TAIL = '\n  ],"traceName": "%s" }'


def event(name: str, args: str = '"External id": 4, "Ev Idx": 9') -> str:
    return (
        '  {\n    "ph": "X",\n    "cat": "user_annotation",\n    "name": "' + name + '",\n    "pid": 1,\n'
        '    "tid": 2,\n    "ts": 3.000,\n    "dur": 4.500\n    ,\n    "args": {\n      ' + args + "\n    }\n  }"
    )


def raw_trace(*events: str, host: str = "vm", path: str = "trace.json") -> bytes:
    return (HEAD % host + ",\n".join(events) + TAIL % path).encode()


@pytest.mark.parametrize(
    "label",
    [
        'a"b',
        '"',
        '""',
        'x", "y',
        "back\\slash",
        "ends with \\",
        'both "\\"',
        "tab\there",
        "two\nlines",
        "\x01\x1f",
        'injected", "ts": 0, "x": "',
        '{"ph": "X"}',
        "é 日本 \U0001f600",
    ],
)
def test_a_label_keeps_its_text_whatever_it_holds(label: str) -> None:
    data = raw_trace(event("before"), event(label), event("after"))
    document = parse_document(data, source="t")
    events = [json.loads(bytes(raw)) for raw in document.events]
    assert document.dropped == 0
    assert [one["ts"] for one in events] == [3.0, 3.0, 3.0]
    assert [one["args"] for one in events] == [{"External id": 4, "Ev Idx": 9}] * 3
    if label.startswith("injected") or label in ('x", "y',):
        return  # valid JSON to any reader: nothing tells it from the exporter's own text
    assert [one["name"] for one in events] == ["before", label, "after"]


def test_only_broken_events_are_touched_and_they_are_counted() -> None:
    good, bad = event("good"), event('b"ad')
    document = parse_document(raw_trace(good, bad, good, bad), source="t")
    assert [bytes(raw).decode() for raw in document.events[::2]] == [good.strip()] * 2
    assert document.repaired == 2
    assert not document.truncated


def test_a_name_of_a_thread_is_escaped_in_its_arguments() -> None:
    document = parse_document(raw_trace(event("thread_name", '"name": "thread "7" (py\\thon)"')), source="t")
    assert json.loads(bytes(document.events[0]))["args"] == {"name": 'thread "7" (py\\thon)'}


def test_arguments_that_cannot_be_told_apart_keep_numbers_and_text() -> None:
    args = '"External id": 7, "Concrete Inputs": ["a"b", ""], "Ev Idx": 8'
    document = parse_document(raw_trace(event("op", args)), source="t")
    found = json.loads(bytes(document.events[0]))
    assert found["dur"] == 4.5
    assert (found["args"]["External id"], found["args"]["Ev Idx"]) == (7, 8)
    assert '["a"b", ""]' in found["args"]["unparsed"]


def test_a_quote_in_top_level_values_is_escaped() -> None:
    document = parse_document(raw_trace(event("x"), host='my "vm"', path='/a "b"/trace.json'), source="t")
    header = {key: json.loads(bytes(raw)) for key, raw in document.header.items()}
    assert header == {
        "schemaVersion": 1,
        "host_name": 'my "vm"',
        "baseTimeNanoseconds": 5,
        "traceName": '/a "b"/trace.json',
    }
    assert document.repaired == 2


def test_an_event_that_imitates_the_layout_is_dropped_and_counted() -> None:
    label = 'x",\n    "ts": 0,\n    "name": "y"z'
    document = parse_document(raw_trace(event("one"), event(label), event("two")), source="t")
    assert [json.loads(bytes(raw))["name"] for raw in document.events] == ["one", "two"]
    assert document.dropped == 1


def test_text_that_is_not_utf8_is_replaced_not_refused() -> None:
    data = raw_trace(event("caf@")).replace(b"@", b"\xe9")
    document = parse_document(data, source="t")
    assert json.loads(bytes(document.events[0]))["name"] == "caf\ufffd"


def test_a_last_event_without_its_closing_line_is_not_trusted() -> None:
    whole = raw_trace(event("one"), event("two")).decode()
    cut = whole[: whole.rindex('"dur": 4.5') + len('"dur": 4')]
    document = parse_document(cut.encode(), source="t")
    assert [json.loads(bytes(raw))["name"] for raw in document.events] == ["one"]
    assert (document.dropped, document.truncated) == (1, True)


def test_there_is_nothing_to_salvage_without_a_list_of_events() -> None:
    assert salvage(b'{"schemaVersion": 1, "host_name": "a"b"}') is None
