"""Options of a workload: text from the command line, checked against the signature of `build`."""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from harness.errors import WorkloadError

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_NONES = ("none", "")
_PLAIN = (int, float, bool, str, Path)


class _UnreadableError(ValueError):
    """A text that does not spell a value of a type; the argument says what was expected."""


def convert_options(build: Callable[..., Any], options: Mapping[str, str], *, workload: str) -> dict[str, Any]:
    """Turn texts into the keyword arguments that `build` takes.

    The type is the annotation: int, float, bool (true/false, yes/no, on/off, 1/0), str, Path, Literal, and
    unions of them (`none` gives None where it is allowed). Without one it is the type of the default, else
    str.

    Args:
        build: The function to be called.
        options: Name to text, as given with `-o name=text`.
        workload: What the user asked for, for the errors.

    Raises:
        WorkloadError: An unknown option, a value that does not fit its type, or an option that is needed and
            missing.
    """
    parameters = _parameters(build, workload)
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    converted: dict[str, Any] = {}
    for name, text in options.items():
        if name in named:
            converted[name] = _convert(build, named[name], text, workload)
        elif takes_more:
            converted[name] = text
        else:
            raise _unknown(name, named, workload)
    missing = [name for name, p in named.items() if p.default is p.empty and name not in options]
    if missing:
        raise WorkloadError(
            f"workload {workload!r} needs the option {missing[0]!r}",
            hint=f"give {' '.join(f'-o {name}=…' for name in missing)}",
        )
    return converted


def _parameters(build: Callable[..., Any], workload: str) -> dict[str, inspect.Parameter]:
    try:
        parameters = dict(inspect.signature(build).parameters)
    except (TypeError, ValueError) as error:
        raise WorkloadError(f"workload {workload!r}: {build!r} does not say its options: {error}") from error
    for parameter in parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise WorkloadError(
                f"workload {workload!r}: the parameter {parameter.name!r} cannot be given by name",
                hint="options are keyword arguments: take the `/` out of the signature",
            )
    return parameters


def _unknown(name: str, named: Mapping[str, inspect.Parameter], workload: str) -> WorkloadError:
    if not named:
        return WorkloadError(f"workload {workload!r} takes no options, got {name!r}")
    nearest = difflib.get_close_matches(name, named, n=1)
    meant = f"did you mean {nearest[0]!r}? " if nearest else ""
    return WorkloadError(
        f"workload {workload!r} has no option {name!r}",
        hint=f"{meant}its options are {', '.join(sorted(named))}",
    )


def _convert(build: Callable[..., Any], parameter: inspect.Parameter, text: str, workload: str) -> Any:
    option = f"option {parameter.name!r} of workload {workload!r}"
    expected = _annotation(build, parameter, option)
    try:
        return _read(text, expected)
    except _UnreadableError as error:
        message = f"{option}: {text!r} is not {error}"
        raise WorkloadError(message, hint=f"give -o {parameter.name}=…") from None
    except TypeError as error:
        raise WorkloadError(
            f"{option} has the type {error}, which cannot be given as text",
            hint="int, float, bool, str, Path, Literal and unions of them can",
        ) from None


def _annotation(build: Callable[..., Any], parameter: inspect.Parameter, option: str) -> Any:
    if parameter.annotation is parameter.empty:
        return type(parameter.default) if type(parameter.default) in _PLAIN else str

    # A stand-in with the one annotation: another parameter's may name a type that is imported for type
    # checkers only.
    def stand_in() -> None: ...

    stand_in.__annotations__ = {parameter.name: parameter.annotation}
    target = build.__init__ if inspect.isclass(build) else getattr(build, "func", build)
    names = getattr(inspect.unwrap(target), "__globals__", {})
    try:
        return typing.get_type_hints(stand_in, globalns=names)[parameter.name]
    except Exception as error:
        unresolved = parameter.annotation
        raise WorkloadError(f"{option} has the type {unresolved!r}, which is not found: {error}") from error


def _read(text: str, expected: Any) -> Any:
    """Raises _UnreadableError for a wrong text, TypeError for a type no text can spell."""
    origin = typing.get_origin(expected)
    if origin is Literal:
        return _read_literal(text, typing.get_args(expected))
    if origin in (Union, types.UnionType):
        return _read_union(text, typing.get_args(expected))
    if expected is types.NoneType:
        return _read_none(text)
    if expected is bool:
        return _read_bool(text)
    if expected in (int, float):
        return _read_number(text, expected)
    if expected is Path:
        return Path(text)
    if expected in (str, Any, object):
        return text
    raise TypeError(getattr(expected, "__name__", None) if isinstance(expected, type) else str(expected))


def _read_union(text: str, members: tuple[Any, ...]) -> Any:
    # Texts fit everything, so they come last: `int | str` reads 3 as a number, `str | None` reads none as
    # None.
    failures: list[str] = []
    for member in sorted(members, key=lambda member: member in (str, Path, Any, object)):
        try:
            return _read(text, member)
        except _UnreadableError as failure:
            failures.append(str(failure))
    raise _UnreadableError(" or ".join(failures))


def _read_literal(text: str, allowed: tuple[Any, ...]) -> Any:
    for value in allowed:
        if str(value).lower() == text.lower():
            return value
    raise _UnreadableError(f"one of {', '.join(map(str, allowed))}")


def _read_none(text: str) -> None:
    if text.lower() not in _NONES:
        raise _UnreadableError("none")


def _read_bool(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise _UnreadableError("true or false")
    return text.lower() in _TRUE


def _read_number(text: str, kind: type[int] | type[float]) -> int | float:
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _UnreadableError("a whole number" if kind is int else "a number")
    return number
