"""Plain tables for terminals: aligned columns, no drawing, no colours, fast for ten thousand rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.cli.terminal import printable

_GAP = "  "


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    """Its first line."""
    right: bool = False
    """Whether it is aligned to the right, as numbers are."""


def render_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table, the titles first. Cells are shown without control characters."""
    cells = [[column.title for column in columns], *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        aligned = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        yield _GAP.join(aligned).rstrip()


def render_pairs(pairs: Iterable[tuple[str, str | Sequence[str]]]) -> Iterator[str]:
    """The lines of a list of names with their values; a value of several lines goes on below itself."""
    known = [(name, [value] if isinstance(value, str) else list(value)) for name, value in pairs]
    width = max((len(name) for name, _ in known), default=0)
    for name, lines in known:
        for number, line in enumerate(lines):
            yield f"{'' if number else name:<{width}}{_GAP}{printable(line)}"
