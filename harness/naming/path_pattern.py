"""Reading the values of a template's fields back from a path, and noticing when there are two readings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.naming.fields import FIELDS, FieldKind
from harness.naming.syntax import Part, Placeholder, split_components


class AmbiguousPathError(Exception):
    """A path has two readings; never leaves this package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PathPattern:
    """The regular expressions of one template, with some fields already replaced by known values."""

    greedy: re.Pattern[str]
    """Matches with every field as long as it can be, from left to right."""
    lazy: re.Pattern[str] | None
    """Matches with every field as short as it can be; None where a path has one reading at most."""
    fields: tuple[str, ...]
    """Fields that are read, in the order of their groups."""
    integers: tuple[str, ...]
    """Those of them that are integers."""
    is_exact: bool
    """False where a match alone does not prove that the values make this path (see `_expression`)."""

    @classmethod
    def build(cls, parts: Sequence[Part], known: Mapping[str, int | str]) -> PathPattern:
        """Compile the expressions; `known` holds checked values of some of the fields."""
        names = dict.fromkeys(part.name for part in parts if isinstance(part, Placeholder))
        read = tuple(name for name in names if name not in known)
        paddings = {(part.name, part.width) for part in parts if isinstance(part, Placeholder)}
        unclear = any(_num_open(component, known) > 1 for component in split_components(parts))
        return cls(
            greedy=_expression(parts, known, lazy=False),
            # Longest first and shortest first, from left to right, are the last and the first of all readings
            # in the order of their fields' lengths: when they are the same, there is no other one.
            lazy=_expression(parts, known, lazy=True) if unclear or "remote_file_name" in read else None,
            fields=read,
            integers=tuple(name for name in read if FIELDS[name].kind is FieldKind.INT),
            is_exact=len(paddings) == len(names),
        )

    def match(self, path: str) -> dict[str, int | str] | None:
        """The values of the fields that are read; None for a path the template cannot make.

        Raises:
            AmbiguousPathError: Other values give the same path.
        """
        found = self.greedy.fullmatch(path)
        if found is None:
            return None
        if self.lazy is not None:
            other = self.lazy.fullmatch(path)
            if other is None or other.groups() != found.groups():
                raise AmbiguousPathError
        values: dict[str, int | str] = dict(zip(self.fields, found.groups(), strict=True))
        for name in self.integers:
            values[name] = int(values[name])
        return values


def _num_open(component: Sequence[Part], known: Mapping[str, int | str]) -> int:
    fields = [part.name for part in component if isinstance(part, Placeholder)]
    return sum(FIELDS[name].is_open for name in fields if name not in known)


def _expression(parts: Sequence[Part], known: Mapping[str, int | str], *, lazy: bool) -> re.Pattern[str]:
    widths: dict[str, int] = {}
    pieces = []
    for part in parts:
        if isinstance(part, str):
            pieces.append(re.escape(part))
        elif part.name in known:
            pieces.append(re.escape(_written(part, known[part.name])))
        elif part.name not in widths:
            widths[part.name] = part.width
            pieces.append(f"(?P<{part.name}>{_value_expression(part, lazy=lazy)})")
        elif widths[part.name] == part.width:
            pieces.append(f"(?P={part.name})")
        else:  # Padded in another way: only formatting the values again shows whether they are the same.
            pieces.append(f"(?:{_value_expression(part, lazy=lazy)})")
    return re.compile("".join(pieces))


def _written(part: Placeholder, value: int | str) -> str:
    return f"{int(value):0{part.width}d}" if FIELDS[part.name].kind is FieldKind.INT else str(value)


def _value_expression(part: Placeholder, *, lazy: bool) -> str:
    field = FIELDS[part.name]
    if field.kind is FieldKind.TEXT:
        return field.lazy_pattern if lazy else field.pattern
    # Canonical numbers only: as many zeros as the template writes, so that no two paths mean the same.
    if part.width == 1:
        return "0|[1-9][0-9]*?" if lazy else "[1-9][0-9]*|0"
    padded, longer = f"[0-9]{{{part.width}}}", f"[1-9][0-9]{{{part.width},}}"
    return f"{padded}|{longer}?" if lazy else f"{longer}|{padded}"
