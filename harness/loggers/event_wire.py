"""TensorBoard's events as bytes, without protobuf: importing it costs 100 ms, an event object some 10 µs.

Only what we write is spelled out here: scalars, hyperparameters, a text, and the two events that open a file.
The messages are those of tensorboard's `event.proto`, `summary.proto` and hparams' `plugin_data.proto`; the
tests hold our bytes against tensorboard's own parser.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterable, Mapping

from google_crc32c import value as crc32c

_DOUBLE = struct.Struct("<d")
_FLOAT = struct.Struct("<f")
_EVENT_HEAD = struct.Struct("<BdB")
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_FRAME_BYTES = 16
_FLOAT32_MAX = 3.4028234663852886e38
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_EVENT_WALL_TIME = 1 << 3 | _FIXED64
_EVENT_STEP = 2 << 3 | _VARINT
_EVENT_FILE_VERSION, _EVENT_SUMMARY, _EVENT_SESSION_LOG = 3, 5, 7
_SESSION_START = 1
_DT_STRING = 7

_frame_heads: dict[int, bytes] = {}
"""Length and its checksum, by length: few lengths occur."""


def frame(data: bytes) -> bytes:
    """One TFRecord: length, its checksum, the data, its checksum."""
    size = len(data)
    head = _frame_heads.get(size)
    if head is None:
        length = _LENGTH.pack(size)
        head = length + _CRC.pack(_masked(crc32c(length)))
        if len(_frame_heads) < 10_000:
            _frame_heads[size] = head
    return head + data + _CRC.pack(_masked(crc32c(data)))


def frame_size(data: bytes | bytearray | memoryview, start: int) -> int:
    """Bytes of the whole record that begins at `start`."""
    return int(_LENGTH.unpack_from(data, start)[0]) + _FRAME_BYTES


class ScalarLayout:
    """The summary of a fixed set of tags, as a struct that only the values are missing from."""

    def __init__(self, tags: Collection[str]) -> None:
        prefixes = [_scalar_prefix(tag) for tag in tags]
        body = sum(len(prefix) + _FLOAT.size for prefix in prefixes)
        if prefixes:
            prefixes[0] = _key(_EVENT_SUMMARY, _BYTES) + varint(body) + prefixes[0]
        self._struct = struct.Struct("<" + "".join(f"{len(prefix)}sf" for prefix in prefixes))
        self._arguments: list[bytes | float] = []
        for prefix in prefixes:
            self._arguments += (prefix, 0.0)

    def event(self, wall_time_s: float, step: int, values: Iterable[float]) -> bytes:
        """An event of all the tags. Values are float32, as TensorBoard's scalars are: too large ones are
        infinite.

        Args:
            wall_time_s: Unix time.
            step: Global step, 0 or more.
            values: One per tag, in order.
        """
        arguments = self._arguments
        arguments[1::2] = values
        try:
            summary = self._struct.pack(*arguments)
        except (OverflowError, struct.error):  # beyond float32; an integer beyond any float
            arguments[1::2] = [_as_float32(value) for value in arguments[1::2]]
            summary = self._struct.pack(*arguments)
        return _EVENT_HEAD.pack(_EVENT_WALL_TIME, wall_time_s, _EVENT_STEP) + varint(step) + summary


def file_version_event(wall_time_s: float) -> bytes:
    """The first event of every file."""
    return _event(wall_time_s, 0, _bytes(_EVENT_FILE_VERSION, b"brain.Event:2"))


def session_start_event(wall_time_s: float, step: int) -> bytes:
    """Says that an attempt starts at `step`: readers drop what earlier attempts wrote from there on."""
    return _event(wall_time_s, step, _bytes(_EVENT_SESSION_LOG, _key(1, _VARINT) + varint(_SESSION_START)))


def hparams_event(wall_time_s: float, params: Mapping[str, bool | int | float | str]) -> bytes:
    """The hyperparameters of a run, for the HParams tab.

    The tab finds the parameters of all runs by itself, so no experiment summary is written: it would show
    those of one run only.
    """
    entries = b"".join(
        _bytes(1, _bytes(1, key.encode(errors="replace")) + _bytes(2, _struct_value(value)))
        for key, value in params.items()
    )
    start_time = _key(5, _FIXED64) + _DOUBLE.pack(wall_time_s)
    content = _bytes(3, entries + start_time)
    value = _text(1, "_hparams_/session_start_info") + _bytes(9, _plugin("hparams", content))
    return _event(wall_time_s, 0, _bytes(_EVENT_SUMMARY, _bytes(1, value)))


def text_event(wall_time_s: float, tag: str, markdown: str) -> bytes:
    """A text for the Text tab."""
    shape = _bytes(2, _bytes(2, _key(1, _VARINT) + varint(1)))
    tensor = _key(1, _VARINT) + varint(_DT_STRING) + shape + _text(8, markdown)
    value = _text(1, f"{tag}/text_summary") + _bytes(8, tensor) + _bytes(9, _plugin("text", b""))
    return _event(wall_time_s, 0, _bytes(_EVENT_SUMMARY, _bytes(1, value)))


def varint(number: int) -> bytes:
    """A number of 0 or more in protobuf's variable length."""
    if number < 0x80:
        return number.to_bytes(1)
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _event(wall_time_s: float, step: int, what: bytes) -> bytes:
    return _EVENT_HEAD.pack(_EVENT_WALL_TIME, wall_time_s, _EVENT_STEP) + varint(step) + what


def _scalar_prefix(tag: str) -> bytes:
    """A `Summary.value` up to the four bytes of its float."""
    start = _text(1, tag) + _key(2, _FIXED32)
    return _key(1, _BYTES) + varint(len(start) + _FLOAT.size) + start


def _plugin(name: str, content: bytes) -> bytes:
    """A `SummaryMetadata` that says whose value it is."""
    return _bytes(1, _text(1, name) + (_bytes(2, content) if content else b""))


def _struct_value(value: bool | int | float | str) -> bytes:
    """A `google.protobuf.Value`."""
    if isinstance(value, bool):
        return _key(4, _VARINT) + varint(int(value))
    if isinstance(value, str):
        return _text(3, value)
    try:
        return _key(2, _FIXED64) + _DOUBLE.pack(value)
    except (OverflowError, struct.error):  # an integer beyond any float
        return _text(3, str(value))


def _key(field: int, wire_type: int) -> bytes:
    return varint(field << 3 | wire_type)


def _bytes(field: int, data: bytes) -> bytes:
    return _key(field, _BYTES) + varint(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode(errors="replace"))


def _as_float32(value: bytes | float) -> float:
    assert not isinstance(value, bytes)
    if value > _FLOAT32_MAX:
        return math.inf
    return -math.inf if value < -_FLOAT32_MAX else value


def _masked(crc: int) -> int:
    """A checksum as TFRecord stores it, so that a checksum of checksums is no constant."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
