"""From what a user writes after `--logger` to a logger: a known name, or an import path to their own."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import cast

from harness.errors import ConfigError
from harness.loggers.base import Logger

_METHODS = ("open", "log_metrics", "log_params", "log_text", "flush", "close")


def _jsonl() -> Logger:
    from harness.loggers.jsonl import JsonlLogger

    return JsonlLogger()


def _text() -> Logger:
    from harness.loggers.text import TextLogger

    return TextLogger()


def _tensorboard() -> Logger:
    from harness.loggers.tensorboard import TensorBoardLogger

    return TensorBoardLogger()


def _progress() -> Logger:
    from harness.loggers.progress import ProgressLogger

    return ProgressLogger()


def _comet() -> Logger:
    from harness.loggers.comet import CometMLLogger

    return CometMLLogger()


def _wandb() -> Logger:
    from harness.loggers.wandb import WandBLogger

    return WandBLogger()


_BUILTIN: dict[str, Callable[[], Logger]] = {
    "comet": _comet,
    "jsonl": _jsonl,
    "progress": _progress,
    "tensorboard": _tensorboard,
    "text": _text,
    "wandb": _wandb,
}
KNOWN_LOGGERS = tuple(_BUILTIN)


def make_logger(spec: str) -> Logger:
    """Build a logger from a name in `KNOWN_LOGGERS` or an import path `my_pkg.my_mod:MyLogger`.

    What the import path names is a logger, or something that returns one when called without arguments.

    Raises:
        ConfigError: Nothing of this name is known, or the import path leads to no logger.
        MissingExtraError: The package that the logger needs is not installed.
    """
    if spec in _BUILTIN:
        return _BUILTIN[spec]()
    if ":" in spec:
        return _import_logger(spec)
    near = difflib.get_close_matches(spec, KNOWN_LOGGERS, n=1)
    raise ConfigError(
        f"logger {spec!r} is not known, expected one of {', '.join(KNOWN_LOGGERS)} or an import path",
        hint=f"did you mean {near[0]}?" if near else "write your own as my_pkg.my_module:MyLogger",
    )


def _import_logger(spec: str) -> Logger:
    target = _find(spec)
    lacks = _missing_methods(target)
    if isinstance(target, type) or (lacks and callable(target)):
        try:
            target = target()
        except Exception as error:
            raise ConfigError(
                f"logger {spec!r} cannot be built: {type(error).__name__}: {error}",
                hint="it is called without arguments; to set options, name a function that returns one",
            ) from error
        lacks = _missing_methods(target)
    if lacks:
        raise ConfigError(
            f"logger {spec!r} gives a {type(target).__name__} that lacks {', '.join(lacks)}",
            hint="subclass harness.loggers.BaseLogger, which has every method",
        )
    return cast(Logger, target)


def _find(spec: str) -> object:
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"logger {spec!r} is no import path", hint="write my_pkg.my_module:MyLogger")
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise ConfigError(
            f"logger {spec!r}: importing {module_name} failed: {type(error).__name__}: {error}",
            hint="is it installed, or is its folder on PYTHONPATH?",
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if not name.startswith("_")]
            near = difflib.get_close_matches(part, names, n=1)
            raise ConfigError(
                f"logger {spec!r}: {module_name} has no {attribute}",
                hint=f"did you mean {near[0]}?" if near else f"define {attribute} in {module_name}",
            )
        found = getattr(found, part)
    return found


def _missing_methods(target: object) -> list[str]:
    lacks = [method for method in _METHODS if not callable(getattr(target, method, None))]
    return lacks if isinstance(getattr(target, "name", None), str) else ["name", *lacks]
