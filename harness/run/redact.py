"""Keeping secrets out of what is written down: values of options and keys that are named like one.

A key is taken for a secret's when one of its words is `token`, `secret`, `key`, `password` and the like, or
ends so (`apikey`). A number under `key` or `token` stays (`max_tokens=1000`, `key_dim=64`); under `password`
and `secret` nothing does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

REDACTED = "[redacted]"

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_ALWAYS = re.compile(r"(secret|passwo?r?d|passphrase|credential)s?", re.IGNORECASE)
_UNLESS_NUMBER = re.compile(r"[a-z]*(token|key)s?", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?|true|false|none|null|", re.IGNORECASE)
_OPTION = re.compile(r"-*[A-Za-z_][\w.-]*")
_URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def redact_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration as plain JSON values, with the values of secret keys replaced at any depth.

    Dataclasses become dictionaries, and what JSON has no form for becomes its `str`.
    """
    return {str(key): _value(str(key), value) for key, value in config.items()}


def redact_argv(argv: Sequence[str]) -> list[str]:
    """A copy of a command line without secrets: `--api-key X`, `--api-key=X`, `-o api_key=X`, `API_KEY=X`."""
    shown: list[str] = []
    expecting = ""
    for word in argv:
        if expecting and not word.startswith("-"):
            shown.append(_text(expecting, word))
            expecting = ""
            continue
        name, equals, value = word.partition("=")
        named = bool(_OPTION.fullmatch(name))
        shown.append(f"{name}={_text(name, value)}" if equals and named else _URL_LOGIN.sub(REDACTED, word))
        expecting = name if named and not equals and name.startswith("--") else ""
    return shown


def _value(key: str, value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return REDACTED if _is_secret(key, number=True) else redact_config(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_value(key, item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return REDACTED if _is_secret(key, number=True) else value
    return _text(key, str(value) if not isinstance(value, PurePath) else value.as_posix())


def _text(key: str, text: str) -> str:
    if _is_secret(key, number=bool(_NUMBER.fullmatch(text))):
        return REDACTED
    return _URL_LOGIN.sub(REDACTED, text)


def _is_secret(key: str, *, number: bool) -> bool:
    words = _WORDS.findall(key)
    if any(_ALWAYS.search(word) for word in words):
        return True
    return not number and any(_UNLESS_NUMBER.fullmatch(word) for word in words)
