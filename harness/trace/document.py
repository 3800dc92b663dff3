"""Opens a trace file: JSON or gzip, whole or damaged, within limits of size.

The result keeps every event as the bytes it has in the file, so that a program which changes one event writes
all others back untouched.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from harness.errors import TraceFormatError
from harness.trace.salvage import DECODE_ERRORS, salvage
from harness.units import format_bytes

MAX_BYTES = 4_000_000_000
"""Largest uncompressed size that is read."""
MAX_GZIP_RATIO = 200
"""Real traces shrink 10 to 60 times; a bomb a thousand times."""
_RATIO_FREE_BYTES = 64_000_000
_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 256
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW_BITS = 31


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A trace as pieces of JSON text."""

    header: dict[str, msgspec.Raw]
    """Top-level keys other than `traceEvents`, in file order."""
    events: list[msgspec.Raw]
    """One piece of text per event, in file order."""
    repaired: int = 0
    """Pieces whose text was not valid JSON and was escaped."""
    dropped: int = 0
    """Events that could not be read."""
    truncated: bool = False
    """Whether the end of the file is missing."""


def read_document(path: Path, *, max_bytes: int = MAX_BYTES) -> Document:
    """Read a trace file, `.json` or gzip (told apart by content, not by name).

    Args:
        path: The file.
        max_bytes: Refuse what is larger than this when uncompressed.

    Raises:
        TraceFormatError: It cannot be read, is too large or is no trace.
    """
    try:
        data, whole = _read_bytes(path, max_bytes)
    except OSError as error:
        raise TraceFormatError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_document(data, source=str(path), whole=whole)


def parse_document(data: bytes, *, source: str, whole: bool = True) -> Document:
    """Take the JSON text of a trace apart; a damaged one as far as it can be read.

    Args:
        data: The text, UTF-8.
        source: The file it came from, for the error.
        whole: False if the file is known to be cut short.

    Raises:
        TraceFormatError: There is no list of events in it.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        if not data.isascii():
            data.decode()  # skipped text is not checked by msgspec
        header, events = _decode(data)
        return Document(header=header, events=events, truncated=not whole)
    except DECODE_ERRORS as error:
        rest = salvage(data)
        if rest is None:
            raise TraceFormatError(
                f"{source}: this is no trace: {_reason(error)}",
                hint="expected the JSON of torch.profiler: an object with a list `traceEvents`",
            ) from error
    return Document(
        header=rest.header,
        events=rest.events,
        repaired=rest.repaired,
        dropped=rest.dropped,
        truncated=rest.truncated or not whole,
    )


def _decode(data: bytes) -> tuple[dict[str, msgspec.Raw], list[msgspec.Raw]]:
    if data[:_HEAD_BYTES].lstrip()[:1] == b"[":  # Chrome's other form: only the events
        return {}, msgspec.json.decode(data, type=list[msgspec.Raw])
    header = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    if "traceEvents" not in header:
        raise ValueError("it has no key traceEvents")
    return header, msgspec.json.decode(header.pop("traceEvents"), type=list[msgspec.Raw])


def _reason(error: BaseException) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _read_bytes(path: Path, max_bytes: int) -> tuple[bytes, bool]:
    """The uncompressed content, and whether it is whole."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        is_gzip = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        if is_gzip:
            limit = min(max_bytes, max(_RATIO_FREE_BYTES, size_bytes * MAX_GZIP_RATIO))
            data, whole = _gunzip(file, limit)
        else:
            limit = max_bytes
            data, whole = file.read(limit + 1), True
    if len(data) > limit:
        raise TraceFormatError(
            f"{path}: {format_bytes(size_bytes)} hold more than {format_bytes(limit)} of text, the limit",
            hint="record fewer steps per window",
        )
    return data, whole


def _gunzip(file: BinaryIO, limit_bytes: int) -> tuple[bytes, bool]:
    """Unpack as far as the data are good, and to just over the limit; a killed writer leaves no end."""
    pieces: list[bytes] = []
    total = 0
    engine = zlib.decompressobj(_GZIP_WINDOW_BITS)
    packed = file.read(_CHUNK_BYTES)
    while total <= limit_bytes:
        try:
            piece = engine.decompress(packed, _CHUNK_BYTES)
        except zlib.error:
            break
        pieces.append(piece)
        total += len(piece)
        packed = engine.unconsumed_tail or engine.unused_data or file.read(_CHUNK_BYTES)
        if engine.eof:  # members one after the other are one file
            if not packed.startswith(_GZIP_MAGIC):
                return b"".join(pieces), True
            engine = zlib.decompressobj(_GZIP_WINDOW_BITS)
        elif not packed and not piece:
            break
    return b"".join(pieces), False
