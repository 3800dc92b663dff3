"""What may stand in a file template: the fields, what they mean, and which values are safe in a path."""

from __future__ import annotations

import enum
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from harness.naming.run_name import is_reserved, plain_ascii

MAX_COMPONENT_LENGTH = 200
"""Most characters of one file or folder name. File systems allow 255 bytes; temporary names need the rest."""

_SLUG_LENGTH = 64
_COMPONENT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")


class FieldKind(enum.Enum):
    """What a field's values are."""

    INT = "integer"
    """From 0 up to 2^64 - 1; a template may pad it with zeros."""
    TEXT = "text"
    """Written as it is; only characters that are safe in a file name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One field of the templates."""

    kind: FieldKind
    """Integer or text."""
    description: str
    """What it stands for, one line, as in docs/templates.md."""
    example: int | str
    """A value it may have."""
    pattern: str = ""
    """Text fields: the regular expression of a value, as many characters as possible."""
    lazy_pattern: str = ""
    """Text fields: the same values, as few characters as possible."""

    @property
    def is_open(self) -> bool:
        """Whether values differ in length and characters, so that a path does not show where one ends."""
        return self.pattern != self.lazy_pattern


def _integer(description: str, example: int) -> Field:
    return Field(kind=FieldKind.INT, description=description, example=example)


def _digits(description: str, example: str) -> Field:
    pattern = f"[0-9]{{{len(example)}}}"
    return Field(kind=FieldKind.TEXT, description=description, example=example, pattern=pattern, lazy_pattern=pattern)


def _name(description: str, example: str) -> Field:
    first, rest, last = "[A-Za-z0-9_]", "[A-Za-z0-9._-]{0,126}", "[A-Za-z0-9_-]"
    return Field(
        kind=FieldKind.TEXT,
        description=description,
        example=example,
        pattern=f"{first}(?:{rest}{last})?",
        lazy_pattern=f"{first}(?:{rest}?{last})??",
    )


def _path(description: str, example: str) -> Field:
    first, rest, last = "[A-Za-z0-9_=+@]", "[A-Za-z0-9._=+@ -]{0,198}", "[A-Za-z0-9_=+@-]"
    component, lazy_component = f"{first}(?:{rest}{last})?", f"{first}(?:{rest}?{last})??"
    return Field(
        kind=FieldKind.TEXT,
        description=description,
        example=example,
        pattern=f"{component}(?:/{component}){{0,5}}",
        lazy_pattern=f"{lazy_component}(?:/{lazy_component}){{0,5}}?",
    )


FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        "run_name": _name("name of the run", "1657932618-infrared-ferret"),
        "rank": _integer("rank of the process among all processes", 0),
        "local_rank": _integer("rank of the process on its machine", 0),
        "world_size": _integer("number of processes of the run", 8),
        "local_world_size": _integer("number of processes on this machine", 4),
        "node_rank": _integer("rank of the machine", 1),
        "epoch": _integer("epochs completed", 1),
        "batch": _integer("number of the step in the whole run, from 1; for a trace the first step in it", 57),
        "batch_in_epoch": _integer("steps completed in this epoch", 12),
        "sample": _integer("samples trained on in the whole run, by this rank", 3648),
        "sample_in_epoch": _integer("samples trained on in this epoch, by this rank", 768),
        "token": _integer("tokens trained on in the whole run, by this rank", 1048576),
        "token_in_epoch": _integer("tokens trained on in this epoch, by this rank", 524288),
        "total_wct": _integer("seconds trained in the whole run, wall clock", 312),
        "epoch_wct": _integer("seconds trained in this epoch, wall clock", 66),
        "batch_wct": _integer("seconds the last step took, wall clock", 5),
        "attempt": _integer("number of the attempt, from 1: every launch of the run is one", 2),
        "step": _integer("the same as batch", 57),
        "date": _digits("day the attempt started, UTC, as yyyymmdd", "20220716"),
        "time": _digits("time of day the attempt started, UTC, as hhmmss", "005018"),
        "hostname": _name("name of the machine, made safe for a file name", "node-3.cluster"),
        "remote_file_name": _path("path of the file below the run root; object stores only", "foo/logs-rank0.txt"),
    }
)
"""Every field, by name."""

REMOTE_FIELDS = frozenset(FIELDS)
"""Fields of a name in an object store."""

LOCAL_FIELDS = REMOTE_FIELDS - {"remote_file_name"}
"""Fields of a name on the local disk."""

_RANKS = frozenset({"rank", "local_rank", "world_size", "local_world_size", "node_rank"})
START_FIELDS = _RANKS | {"run_name", "attempt", "date", "time", "hostname"}
"""Fields that have a value before the first step, for the rest of the attempt."""


def slug(text: str) -> str:
    """A text from outside, such as the host's name, as a safe `TEXT` value of at most 64 characters.

    A text that is safe already is returned as it is. Any other is changed and gets eight hexadecimal digits
    of its checksum at the end, so that two texts that look alike afterwards stay two.
    """
    if len(text) <= _SLUG_LENGTH and _COMPONENT.fullmatch(text) and not is_reserved(text):
        return text
    checksum = f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"
    start = plain_ascii(text)[: _SLUG_LENGTH - len(checksum) - 1].replace(".", "-").strip("-")
    return f"{start}-{checksum}" if start else checksum
