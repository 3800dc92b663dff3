"""Gets the events out of a trace that is not valid JSON.

torch's exporter writes labels unescaped in some versions (a `"` in a `record_function` name makes the whole
file invalid), and a killed process leaves half a file. kineto writes one event per block of lines, so nearly
every event can be read by itself, and the fields of a broken one are told apart by their place on the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

DECODE_ERRORS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)
"""What hostile or broken JSON makes the decoders raise (deep nesting, numbers of 5,000 digits, bad UTF-8)."""

_EVENTS_KEY = re.compile(rb'"traceEvents"\s*:\s*\[')
_BLOCK_END = b"\n  }"
_BLOCK_START = re.compile(rb"\s*\{\s*\n {4}\"")
_FIELD = re.compile(r'^    "(ph|cat|name|pid|tid|ts|dur|id|bp|s|args)": ', re.MULTILINE)
_KEY = re.compile(r'[\s,]*"([^"\\\n]+)"\s*:\s*')
_LABEL_ARGS = re.compile(r'\{\s*"(name|labels)": "(.*)"\s*\}', re.DOTALL)
_NUMBER_ARG = re.compile(r'"([\w ]+)": (-?\d+)(?=[,\s}])')
_SEPARATORS = re.compile(r"[\s,]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Salvaged:
    """What could be read of a broken trace; every piece is valid JSON."""

    header: dict[str, msgspec.Raw]
    """Top-level keys other than `traceEvents`."""
    events: list[msgspec.Raw]
    """Events in file order."""
    repaired: int
    """Events and top-level values whose text was escaped."""
    dropped: int
    """Events that could not be read."""
    truncated: bool
    """Whether the end of the list of events is missing."""


def salvage(data: bytes) -> Salvaged | None:
    """Read what can be read of a trace that does not decode; None if there is no list of events in it.

    Args:
        data: The whole file, uncompressed.
    """
    key = _EVENTS_KEY.search(data)
    if key is None:
        return None
    header, bad_values = _read_keys(data[: key.start()].decode("utf-8", "replace").lstrip(" \n\r\t{"))
    is_kineto = _BLOCK_START.match(data, key.end())
    reader = _Blocks(data, key.end()) if is_kineto else _Scan(data, key.end())
    events = [msgspec.Raw(event) for event in reader]
    tail, bad_tail_values = _read_keys(reader.tail)
    return Salvaged(
        header=header | tail,
        events=events,
        repaired=reader.repaired + bad_values + bad_tail_values,
        dropped=reader.dropped,
        truncated=reader.truncated,
    )


class _Blocks:
    """Events in kineto's layout: `  {`, one field per line with four spaces, `  },`."""

    def __init__(self, data: bytes, start: int) -> None:
        end = data.rfind(b"\n  ]", start)
        self.truncated = end < 0
        self.tail = "" if self.truncated else _tail_text(data[end:].decode("utf-8", "replace"))
        self.repaired = 0
        self.dropped = 0
        self._data = data
        self._start = start
        self._end = len(data) if self.truncated else end

    def __iter__(self) -> Iterator[bytes]:
        # One block at a time: a list of all would be a second copy of a large file.
        position = self._start
        while (stop := self._data.find(_BLOCK_END, position, self._end)) >= 0:
            block = self._data[position:stop].lstrip(b" \n\r\t,") + _BLOCK_END
            position = stop + len(_BLOCK_END)
            event = block if _is_valid(block) else _repair_block(block.decode("utf-8", "replace"))
            if event is None:
                self.dropped += 1
                continue
            self.repaired += event is not block
            yield event
        # Without its closing line an event can look whole and yet have lost digits of its last number.
        if self._data[position : self._end].strip(b" \n\r\t,"):
            self.dropped += 1


class _Scan:
    """Events in any other layout, one after the other until the first that cannot be read."""

    def __init__(self, data: bytes, start: int) -> None:
        self.truncated = True
        self.tail = ""
        self.repaired = 0
        self.dropped = 0
        self._text = data[start:].decode("utf-8", "replace")

    def __iter__(self) -> Iterator[bytes]:
        text, decoder = self._text, json.JSONDecoder()
        position = _skip_separators(text, 0)
        while position < len(text) and text[position] != "]":
            try:
                _, end = decoder.raw_decode(text, position)
            except DECODE_ERRORS:
                self.dropped += 1
                return
            event = _as_json(text[position:end])
            if event is None:
                self.dropped += 1
            else:
                yield event
            position = _skip_separators(text, end)
        if position < len(text):
            self.truncated = False
            self.tail = _tail_text(text[position:])


def _repair_block(block: str) -> bytes | None:
    """One event of kineto's layout with its strings escaped; None if its fields cannot be told apart."""
    fields = list(_FIELD.finditer(block))
    if not fields:
        return None
    ends = [field.start() for field in fields[1:]] + [len(block) - len(_BLOCK_END)]
    parts: dict[str, bytes] = {}
    for field, end in zip(fields, ends, strict=True):
        key, text = field[1], block[field.end() : end].strip(" \n\r\t,")
        value = _as_json(text) or (_repair_args(text) if key == "args" else _escape(text))
        if value is None or key in parts:  # a doubled key: the label imitates the layout
            return None
        parts[key] = value
    event = b"{" + b", ".join(b'"%s": %s' % (key.encode(), value) for key, value in parts.items()) + b"}"
    return event if "ph" in parts and _is_valid(event) else None


def _repair_args(text: str) -> bytes:
    """Arguments that are not valid JSON: a label escaped, else their whole numbers and the text itself."""
    label = _LABEL_ARGS.fullmatch(text)
    if label:
        return msgspec.json.encode({label[1]: label[2]})
    numbers = {name: int(digits) for name, digits in _NUMBER_ARG.findall(text) if len(digits) < 19}
    return msgspec.json.encode({**numbers, "unparsed": text})


def _read_keys(text: str) -> tuple[dict[str, msgspec.Raw], int]:
    """Top-level `"key": value` pairs and the number of values that had to be escaped."""
    decoder, position, repaired = json.JSONDecoder(), 0, 0
    values: dict[str, msgspec.Raw] = {}
    while key := _KEY.match(text, position):
        try:
            _, position = decoder.raw_decode(text, key.end())
            value = _as_json(text[key.end() : position])
        except DECODE_ERRORS:
            value = None
        line_rest = text[position:].split("\n", 1)[0].strip() if value is not None else ""
        if value is None or not (line_rest == "" or line_rest.startswith(",")):
            position = text.find("\n", key.end()) if "\n" in text[key.end() :] else len(text)
            line = text[key.end() : position].strip(" \r\t,")
            value = _escape(line) or msgspec.json.encode(line)
            repaired += 1
        values[key[1]] = msgspec.Raw(value)
    return values, repaired


def _tail_text(text: str) -> str:
    """What follows the list of events, without the brackets around it."""
    return text.lstrip(" \n\r\t],").rstrip(" \n\r\t").removesuffix("}").rstrip(" \n\r\t")


def _escape(text: str) -> bytes | None:
    """An unescaped string between quotes, as valid JSON with the same characters; None if it is no string."""
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        return None
    return msgspec.json.encode(text[1:-1])


def _as_json(text: str) -> bytes | None:
    """The text as strict JSON (bare NaN becomes null), None if it is none."""
    data = text.encode("utf-8", "replace")
    if _is_valid(data):
        return data
    try:
        return msgspec.json.encode(json.loads(text))
    except DECODE_ERRORS:
        return None


def _is_valid(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except DECODE_ERRORS:
        return False
    return True


def _skip_separators(text: str, position: int) -> int:
    match = _SEPARATORS.match(text, position)
    return match.end() if match else position
