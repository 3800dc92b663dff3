"""One name for a run that works everywhere: as a folder, in a URL, in a shell, in the trace viewer.

A name a person gave is checked and used as it is, or refused with the reason and a name that would do; it is
never changed silently. A run that was given none gets one that is easy to say, drawn from a private random
source: seeding a training run must not repeat its name, and naming it must not move the training's random
numbers.
"""

from __future__ import annotations

import contextlib
import random
import re
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import RunNameError

if TYPE_CHECKING:
    from coolname import RandomGenerator

MAX_LENGTH = 128
"""Most characters of a run name. File systems stop at 255 bytes; the rest is for what templates add."""

ENVIRONMENT = ("HARNESS_RUN_NAME", "COMPOSER_RUN_NAME", "RUN_NAME")
"""Environment variables that name a run, the first one set wins."""

_ALLOWED = "letters, digits, '.', '_' and '-'"
_WRONG_CHARACTER = re.compile(r"[^A-Za-z0-9._-]")
_TRAILING_DIGITS = re.compile(r"\.([0-9]+)\Z")
_RESERVED = frozenset(["CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))])
_SHOWN_LENGTH = 60
_READ_LENGTH = 1024  # of a hopeless name, to suggest another one


def validate_run_name(name: str, *, source: str = "run_name") -> str:
    """Check a run name and return it unchanged.

    A name has 1 to 128 letters, digits, `.`, `_` and `-` (ASCII only, so that two names never look the same).
    It starts with a letter, a digit or `_`, does not end in `.` or in `.digits`, and is no device name of
    Windows.

    Args:
        name: The name.
        source: The option or environment variable it came from, for the error.

    Raises:
        RunNameError: The name breaks a rule; the hint holds a name that would do.
    """
    fault = _fault(name)
    if fault is not None:
        raise RunNameError(f"{source}={display(name)} {fault}", hint=_hint(name, source))
    return name


def suggest_run_name(name: str) -> str | None:
    """The nearest valid name, or None where nothing usable is left of it (`foo/bar` gives `foo-bar`)."""
    if _fault(name) is None:
        return name
    text = plain_ascii(name)
    if is_reserved(text):
        text = f"run-{text}"
    text = text[:MAX_LENGTH].rstrip(".-")
    return _TRAILING_DIGITS.sub(r"-\1", text) or None


def plain_ascii(text: str) -> str:
    """A text as letters, digits, `.`, `_` and single `-`: accents go, the rest becomes `-`."""
    decomposed = unicodedata.normalize("NFKD", text[:_READ_LENGTH])
    letters = "".join(char for char in decomposed if not unicodedata.combining(char))
    parts = [part for part in re.split(r"[/\\]", letters) if part.strip(". ")]
    return re.sub(r"-{2,}", "-", _WRONG_CHARACTER.sub("-", "-".join(parts))).strip(".-")


def is_reserved(component: str) -> bool:
    """Whether Windows takes a file of this name for a device, whatever follows the first dot (`nul.txt`)."""
    return component.partition(".")[0].rstrip(" ").upper() in _RESERVED


def display(text: object) -> str:
    """A value for an error message: quoted, cut to a line, control and direction characters escaped."""
    if isinstance(text, str) and len(text) > _SHOWN_LENGTH:
        return f"{text[:_SHOWN_LENGTH]!r}… ({len(text)} characters)"
    return repr(text)


def _fault(name: object) -> str | None:
    if not isinstance(name, str):
        return f"is of type {type(name).__name__}, a run name is a text"
    if not name:
        return "is empty"
    wrong = _WRONG_CHARACTER.search(name)
    if wrong:
        return _character_fault(wrong.group())
    if len(name) > MAX_LENGTH:
        return f"is longer than {MAX_LENGTH} characters"
    return _shape_fault(name)


def _character_fault(char: str) -> str:
    if char in "/\\":
        return f"contains {char!r}: a run is one folder, its name is no path"
    kind = unicodedata.category(char)
    if kind == "Cs":
        return f"contains half a character (a lone surrogate, U+{ord(char):04X})"
    if kind in ("Cc", "Cf", "Zl", "Zp"):
        return f"contains the invisible character {char!r} (U+{ord(char):04X})"
    return f"contains {char!r} (U+{ord(char):04X}), only {_ALLOWED} are allowed"


def _shape_fault(name: str) -> str | None:
    if name in (".", ".."):
        return "stands for a folder that is there already"
    if name[0] == ".":
        return "starts with '.', which hides the folder"
    if name[0] == "-":
        return "starts with '-', which commands read as an option"
    if name[-1] == ".":
        return "ends with '.', which some file systems drop"
    if _TRAILING_DIGITS.search(name):
        return (
            "ends in a dot and digits, which torch-tb-profiler cuts from a trace's file name "
            "and takes for the number of a span"
        )
    if is_reserved(name):
        return "is the name of a device on Windows"
    return None


def _hint(name: object, source: str) -> str:
    if name == "":
        return f"give a name, or leave {source} unset to get a generated one"
    suggestion = suggest_run_name(name) if isinstance(name, str) else None
    if suggestion is None:
        return f"use 1 to {MAX_LENGTH} {_ALLOWED}, for instance 'my-run-1'"
    grouped = "; to group runs in folders use --root" if "/" in str(name) else ""
    return f"use for instance {suggestion!r}{grouped}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedName:
    """The name a run was given, and by whom."""

    name: str | None
    """A valid run name; None when nobody gave one and it must be generated."""
    source: str
    """`run_name`, the environment variable's name, or `generated`."""


def resolve_run_name(explicit: str | None, environ: Mapping[str, str]) -> ResolvedName:
    """Find the name a run was given: the argument, else the first of `ENVIRONMENT` that is set, else none.

    A variable that is set but empty is an error and not the same as unset: `RUN_NAME=$EMPTY` is a slip
    that would otherwise train under a name nobody asked for.

    Raises:
        RunNameError: The name given is not valid; the message says where it came from.
    """
    if explicit is not None:
        return ResolvedName(name=validate_run_name(explicit), source="run_name")
    for variable in ENVIRONMENT:
        if variable in environ:
            return ResolvedName(name=validate_run_name(environ[variable], source=variable), source=variable)
    return ResolvedName(name=None, source="generated")


def _now_unix_s() -> int:
    return int(time.time())


class NameGenerator:
    """Draws names such as `1657932618-infrared-ferret`: the Unix time in seconds, an adjective and a noun.

    About 370,000 pairs of words: two names of the same second are the same once in so many draws, so whoever
    claims the directory draws again on a clash.

    Args:
        unix_s: The clock, in whole seconds since 1970.
        random: The random source; by default a private one of the operating system's, which no seed repeats.

    Example:
        >>> from random import Random
        >>> NameGenerator(unix_s=lambda: 1657932618, random=Random(3)).generate().startswith("1657932618-")
        True
    """

    def __init__(self, *, unix_s: Callable[[], int] = _now_unix_s, random: random.Random | None = None) -> None:
        self._unix_s = unix_s
        self._random = random
        self._words: RandomGenerator | None = None

    def generate(self) -> str:
        """A new name. The first call imports and builds the word lists, which takes about 50 ms."""
        if self._words is None:
            self._words = _word_generator(self._random or random.SystemRandom())
        return f"{self._unix_s()}-{'-'.join(self._words.generate(2))}"


def _word_generator(source: random.Random) -> RandomGenerator:
    with _global_random_unmoved():
        import copy

        import coolname
        import coolname.data

        # A copy, because the generator normalises the configuration it is given in place.
        config: Any = copy.deepcopy(coolname.data.config)
        return coolname.RandomGenerator(config, source)


@contextlib.contextmanager
def _global_random_unmoved() -> Iterator[None]:
    """Importing coolname and building one of its generators draws from the global `random`; undo that."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
