"""Reading a file template: from text to parts, with every rule that needs no values.

The text comes from a user and is never given to `str.format`, which reads attributes (`{rank.__class__}`) and
allocates any width (`{batch:>200000000}`). Only the fields of a fixed list and one kind of format are known
here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from harness.errors import TemplateError
from harness.naming.fields import FIELDS, MAX_COMPONENT_LENGTH, FieldKind
from harness.naming.run_name import display, is_reserved

MAX_TEMPLATE_LENGTH = 512
MAX_COMPONENTS = 6
MAX_WIDTH = 20

_BRACES = re.compile(r"(\{[^{}]*\})")
_FIELD = re.compile(r"(?P<name>[A-Za-z0-9_]*)(?P<rest>.*)", re.DOTALL)
_PADDING = re.compile(r":0([1-9][0-9]?)d")
_WRONG_LITERAL = re.compile(r"[^A-Za-z0-9._=+@/ -]")
_NOT_DIGIT = re.compile(r"[^0-9]")


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A field in a template."""

    name: str
    """A key of `FIELDS`."""
    width: int
    """Digits an integer is padded to with zeros; 1 where it is not padded."""

    def __str__(self) -> str:
        return f"{{{self.name}:0{self.width}d}}" if self.width > 1 else f"{{{self.name}}}"


Part = str | Placeholder


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """A template's text and where it came from: all that an error about it must tell."""

    text: str
    option: str
    """The option that holds the template."""
    allowed: tuple[str, ...]
    """Fields that have a value where the option is used, in the order of `FIELDS`."""

    def error(self, fault: str, hint: str) -> TemplateError:
        """An error to raise; every one ends with the fields that are allowed."""
        stop = "" if hint.endswith("?") else "."
        return TemplateError(
            f"{self.option}={display(self.text)}: {fault}",
            hint=f"{hint}{stop} Fields: {' '.join(self.allowed)}",
        )


def check_allowed(fields: Collection[str], option: str) -> tuple[str, ...]:
    """The given fields in the order of `FIELDS`.

    Raises:
        TemplateError: One of them is no field.
    """
    unknown = [field for field in fields if field not in FIELDS]
    if unknown:
        raise TemplateError(f"{option}: no such field as {unknown[0]!r}", hint=f"fields are {' '.join(FIELDS)}")
    return tuple(field for field in FIELDS if field in fields)


def read_template(source: TemplateSource) -> tuple[Part, ...]:
    """Take a template apart into literal text and fields.

    Raises:
        TemplateError: It breaks a rule; the message names the option and the field at fault.
    """
    text = source.text
    if not isinstance(text, str):
        raise source.error(f"a template is a text, not {type(text).__name__}", "give a text")
    if not text.strip():
        raise source.error("the template is empty", "give a path such as {run_name}/logs-rank{rank}.txt")
    if len(text) > MAX_TEMPLATE_LENGTH:
        raise source.error(f"the template has more than {MAX_TEMPLATE_LENGTH} characters", "make it shorter")
    parts: list[Part] = []
    for token in _BRACES.split(text):
        if token.startswith("{") and token.endswith("}") and len(token) > 1:
            parts.append(_read_field(token, source))
        elif token:
            parts.append(_check_literal(token, source))
    _check_components(parts, source)
    _check_separators(parts, source)
    return tuple(parts)


def _read_field(token: str, source: TemplateSource) -> Placeholder:
    found = _FIELD.fullmatch(token[1:-1])
    assert found is not None, "the pattern matches any text"
    name, rest = found["name"], found["rest"]
    if rest and not rest.startswith(":"):
        raise source.error(f"field {display(token)}: {_extra_fault(rest)}", _nearest(token[1:-1], source))
    if name not in source.allowed:
        known = "has no value here" if name in FIELDS else "is unknown"
        raise source.error(f"field {display(token)} {known}", _nearest(name, source))
    if not rest:
        return Placeholder(name, 1)
    if FIELDS[name].kind is FieldKind.TEXT:
        raise source.error(f"field {display(token)}: a text field takes no format", f"write {{{name}}}")
    padding = _PADDING.fullmatch(rest)
    if padding is None or int(padding[1]) > MAX_WIDTH:
        raise source.error(
            f"field {display(token)}: the only format is padding with zeros, up to {MAX_WIDTH} digits",
            f"write {{{name}}} or, for instance, {{{name}:06d}}",
        )
    return Placeholder(name, int(padding[1]))


def _extra_fault(rest: str) -> str:
    faults = {".": "attributes cannot be read", "[": "items cannot be read", "!": "there are no conversions"}
    return faults.get(rest[0], f"{rest[0]!r} cannot be in a field's name")


def _nearest(wrong: str, source: TemplateSource) -> str:
    name = re.sub(r"[^a-z0-9_].*", "", wrong.strip().lower(), flags=re.DOTALL)
    near = [name] if name in source.allowed else difflib.get_close_matches(name, source.allowed, n=1)
    return f"did you mean {{{near[0]}}}?" if near else "write one of the fields"


def _check_literal(literal: str, source: TemplateSource) -> str:
    wrong = _WRONG_LITERAL.search(literal)
    if wrong is None:
        return literal
    char = wrong.group()
    if char in "{}":
        raise source.error(f"a {char!r} without its partner, or doubled", "braces only stand around a field")
    if char == "\\":
        raise source.error("it contains a backslash", "folders are separated by '/', on every system")
    raise source.error(
        f"it contains {char!r} (U+{ord(char):04X})",
        "outside of fields, use letters, digits, spaces and any of . _ = + @ - with '/' between folders",
    )


def _check_components(parts: Sequence[Part], source: TemplateSource) -> None:
    if source.text.startswith("/"):
        raise source.error("the path is absolute", "paths are below the run root: drop the leading '/'")
    components = split_components(parts)
    if len(components) > MAX_COMPONENTS:
        raise source.error(f"it has {len(components)} folders and names, at most {MAX_COMPONENTS}", "use fewer '/'")
    for component in components:
        fault = _component_fault(component)
        if fault is not None:
            shown = "".join(map(str, component))
            raise source.error(
                f"the part {display(shown)} {fault}",
                "give each folder and file a plain name, below the run root",
            )


def split_components(parts: Sequence[Part]) -> list[list[Part]]:
    """The parts of each folder and of the file name, split at `/`; an empty list is an empty name."""
    components: list[list[Part]] = [[]]
    for part in parts:
        if isinstance(part, Placeholder):
            components[-1].append(part)
            continue
        first, *others = part.split("/")
        components[-1] += [first] if first else []
        components += [[other] if other else [] for other in others]
    return components


def _component_fault(component: Sequence[Part]) -> str | None:
    if not component:
        return "is an empty name: two '/' in a row, or one at the end"
    first, last = component[0], component[-1]
    if component in (["."], [".."]):
        return "is no name: it stands for a folder above or for the same folder"
    if isinstance(first, str) and first[0] in ".- ":
        return f"starts with {first[0]!r}"
    if isinstance(last, str) and last[-1] in ". ":
        return f"ends with {last[-1]!r}, which some file systems drop"
    if sum(len(part) for part in component if isinstance(part, str)) > MAX_COMPONENT_LENGTH:
        return f"has more than {MAX_COMPONENT_LENGTH} characters"
    # `com{rank}` is the device COM1 for rank 1, so an integer is tried as 1.
    tried = "".join(part if isinstance(part, str) else "1" if _is_integer(part) else "x" for part in component)
    return "is the name of a device on Windows" if is_reserved(tried) else None


def _is_integer(placeholder: Placeholder) -> bool:
    return FIELDS[placeholder.name].kind is FieldKind.INT


def _check_separators(parts: Sequence[Part], source: TemplateSource) -> None:
    """Refuse fields that run into each other: `{epoch}{batch}` is 111 for epoch 1, batch 11 and for 11, 1.

    Fields of fixed width and digits in the text do not separate: `{epoch}0{batch}` has the same fault.
    """
    before: Placeholder | None = None
    for part in parts:
        if isinstance(part, str):
            before = None if _NOT_DIGIT.search(part) else before
        elif _is_integer(part) or FIELDS[part.name].is_open:
            if before is not None:
                raise source.error(
                    f"fields {before} and {part} run into each other: different values give the same file",
                    f"put a separator between them, such as {before}-{part}",
                )
            before = part
