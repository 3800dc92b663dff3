"""File and folder names with fields, such as `{run_name}/traces/rank{rank}.{batch:06d}.pt.trace.json.gz`.

A template is compiled once, when the run is built, so that a mistake in it stops the run before the first
step and not a night later. The compiled object writes paths and reads them back: finding, rotating and
comparing files use the same rules as writing them.
"""

from __future__ import annotations

import functools
import operator
import re
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any

from harness.errors import TemplateError
from harness.naming.fields import FIELDS, LOCAL_FIELDS, MAX_COMPONENT_LENGTH, FieldKind
from harness.naming.path_pattern import AmbiguousPathError, PathPattern
from harness.naming.run_name import display
from harness.naming.syntax import Part, Placeholder, TemplateSource, check_allowed, read_template

Values = Mapping[str, int | str]
_Getter = Callable[[Values], tuple[Any, ...]]

_MAX_PATH_LENGTH = 2048  # of a path to read; longer ones are none of ours
_KEPT_PATTERNS = 64
_TEXT_VALUES = {name: re.compile(field.pattern) for name, field in FIELDS.items() if field.kind is FieldKind.TEXT}


class Template:
    """A compiled file template; make one with `Template.compile`.

    Safe to share between threads, to copy and to pickle. Two templates are equal when their texts are.

    Example:
        >>> template = Template.compile("{run_name}/ep{epoch}-ba{batch:06d}.pt", option="save_filename")
        >>> template.format({"run_name": "foo", "epoch": 1, "batch": 57})
        'foo/ep1-ba000057.pt'
        >>> template.parse("foo/ep1-ba000057.pt")
        {'run_name': 'foo', 'epoch': 1, 'batch': 57}
    """

    __slots__ = (
        "_checked_texts",
        "_format_text",
        "_get_all",
        "_get_integers",
        "_get_texts",
        "_pack_integers",
        "_parts",
        "_patterns",
        "_source",
        "fields",
        "text",
    )

    text: str
    """The template as it was written."""
    fields: tuple[str, ...]
    """The fields it uses, each once, in the order of their first use."""

    def __init__(self, source: TemplateSource, parts: tuple[Part, ...]) -> None:
        placeholders = [part for part in parts if isinstance(part, Placeholder)]
        integers, texts = _names(placeholders, FieldKind.INT), _names(placeholders, FieldKind.TEXT)
        self.text = source.text
        self.fields = tuple(dict.fromkeys(part.name for part in placeholders))
        self._source = source
        self._parts = parts
        self._format_text = "".join(map(_percent_format, parts))
        self._get_all = _getter(tuple(part.name for part in placeholders))
        self._get_integers = _getter(integers)
        self._get_texts = _getter(texts)
        # Packing into unsigned 64-bit numbers is the cheapest check that all are integers and none is
        # negative: 0.1 µs for 17 of them, where a look at each one takes 0.8.
        self._pack_integers = struct.Struct(f"={len(integers)}Q").pack
        # The texts seen last, found safe: a run's name and host do not change.
        self._checked_texts: tuple[str, ...] | None = None
        self._patterns: dict[tuple[tuple[str, int | str], ...], PathPattern] = {}

    @classmethod
    def compile(cls, text: str, *, option: str, fields: Collection[str] = LOCAL_FIELDS) -> Template:
        """Check a template and make it ready for use.

        Args:
            text: The template. docs/templates.md has the rules.
            option: The option it came from, for errors.
            fields: Names of the fields that have a value where it is used.

        Raises:
            TemplateError: The template breaks a rule. The message names the option, the field at fault, the
                nearest match and the allowed fields.
        """
        source = TemplateSource(text, option, check_allowed(fields, option))
        return cls(source, read_template(source))

    def format(self, values: Values) -> str:
        """The path for these values, relative to the run root, with `/` between folders.

        Args:
            values: A value for each field of the template; others are ignored.

        Raises:
            TemplateError: A value is missing, of the wrong type, or not safe in a path.
        """
        try:
            self._pack_integers(*self._get_integers(values))
            texts = self._get_texts(values)
            if texts != self._checked_texts:
                self._check_values(values)
                self._checked_texts = texts
            path = self._format_text % self._get_all(values)
        except (KeyError, struct.error):
            self._check_values(values)
            raise
        if len(path) > MAX_COMPONENT_LENGTH:
            self._check_length(path)
        return path

    def parse(self, path: str, **known: int | str) -> dict[str, int | str] | None:
        """The values that `format` made this path from; None for a path it cannot have made.

        Args:
            path: A relative path, as `format` gives it.
            **known: Values that are known and must be the path's. They are needed where two text fields stand
                in one name: `{run_name}-{hostname}` reads `a-b-c` in two ways until `run_name="a"` is given.

        Raises:
            TemplateError: The path has more than one reading, or a known value is none a field can have.
        """
        if len(path) > MAX_COMPONENT_LENGTH and not _is_short_enough(path):
            return None
        pattern = self._pattern(known)
        try:
            values = pattern.match(path)
        except AmbiguousPathError:
            raise self._ambiguous(path) from None
        if values is None:
            return None
        if known:
            values.update((name, known[name]) for name in known if name in self.fields)
        try:
            self._pack_integers(*self._get_integers(values))
        except struct.error:
            return None  # above 64 bits, which format refuses
        return values if pattern.is_exact or self.format(values) == path else None

    def _pattern(self, known: Values) -> PathPattern:
        key = tuple(known.items())
        pattern = self._patterns.get(key)
        if pattern is None:
            for name, value in known.items():
                self._check_value(name, value)
            if len(self._patterns) >= _KEPT_PATTERNS:
                self._patterns.clear()
            pattern = self._patterns[key] = PathPattern.build(self._parts, known)
        return pattern

    def _ambiguous(self, path: str) -> TemplateError:
        texts = [name for name in self.fields if FIELDS[name].is_open]
        return self._source.error(
            f"{display(path)} can be read in more than one way",
            f"tell parse a value it knows, for instance parse(path, {texts[0]}=...)",
        )

    def _check_values(self, values: Values) -> None:
        for name in self.fields:
            if name not in values:
                raise self._source.error(f"field {{{name}}} has no value yet", "leave the field out, or give a value")
            self._check_value(name, values[name])

    def _check_value(self, name: str, value: object) -> None:
        if name not in FIELDS:
            raise self._source.error(f"there is no field {{{name}}}", "give values of fields only")
        fault = _value_fault(name, value)
        if fault is not None:
            raise self._source.error(f"field {{{name}}} cannot be {display(value)}: {fault}", "give another value")

    def _check_length(self, path: str) -> None:
        if not _is_short_enough(path):
            raise self._source.error(
                f"a file or folder name in {display(path)} has more than {MAX_COMPONENT_LENGTH} characters",
                "use a shorter run name, or fewer fields in one name",
            )

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, Template) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    def __reduce__(self) -> tuple[Callable[..., Template], tuple[TemplateSource, tuple[Part, ...]]]:
        return Template, (self._source, self._parts)


def _names(placeholders: list[Placeholder], kind: FieldKind) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.name for part in placeholders if FIELDS[part.name].kind is kind))


def _percent_format(part: Part) -> str:
    if isinstance(part, str):
        return part.replace("%", "%%")
    if FIELDS[part.name].kind is FieldKind.TEXT:
        return "%s"
    return f"%0{part.width}d" if part.width > 1 else "%d"


def _getter(names: tuple[str, ...]) -> _Getter:
    # itemgetter gives a tuple for two names or more only.
    return operator.itemgetter(*names) if len(names) > 1 else functools.partial(_get_few, names)


def _get_few(names: tuple[str, ...], values: Values) -> tuple[int | str, ...]:
    return tuple([values[name] for name in names])


def _value_fault(name: str, value: object) -> str | None:
    if FIELDS[name].kind is FieldKind.INT:
        try:
            struct.pack("=Q", value)
        except struct.error:
            return "it must be an integer from 0 to 2^64 - 1"
        return None
    if not isinstance(value, str):
        return "it must be a text"
    if _TEXT_VALUES[name].fullmatch(value) is None:
        return f"it is not safe in a path, unlike {FIELDS[name].example!r}"
    return None


def _is_short_enough(path: str) -> bool:
    return len(path) <= _MAX_PATH_LENGTH and all(len(name) <= MAX_COMPONENT_LENGTH for name in path.split("/"))
