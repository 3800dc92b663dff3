"""From what a user writes after `--logger` to a logger: a known name, one that an installed package brings, or an
import path to their own."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from harness.errors import ConfigError, HarnessError
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


def _mlflow() -> Logger:
    from harness.loggers.mlflow import MLflowLogger

    return MLflowLogger()


def _wandb() -> Logger:
    from harness.loggers.wandb import WandBLogger

    return WandBLogger()


_BUILTIN: dict[str, Callable[[], Logger]] = {
    "comet": _comet,
    "jsonl": _jsonl,
    "mlflow": _mlflow,
    "progress": _progress,
    "tensorboard": _tensorboard,
    "text": _text,
    "wandb": _wandb,
}
KNOWN_LOGGERS = tuple(_BUILTIN)
ENTRY_POINTS = "harness.loggers"
"""The group in which a package names its loggers; each leads to what an import path may lead to."""


def make_logger(spec: str) -> Logger:
    """Build a logger from a name in `KNOWN_LOGGERS`, the name of an entry point in the group `harness.loggers`, or an
    import path `my_pkg.my_mod:MyLogger`.

    What an entry point or import path leads to is a logger, or something that returns one when called without
    arguments. A name of ours is ours, whatever packages say.

    Raises:
        ConfigError: Nothing of this name is known, two packages bring it, or it leads to no logger.
        MissingExtraError: The package that the logger needs is not installed.
    """
    if spec in _BUILTIN:
        return _BUILTIN[spec]()
    if ":" in spec:
        return _build(spec, _find(spec, spec))
    brought = _brought_by_packages()
    if spec in brought:
        return _build(spec, _load(spec, brought[spec]))
    known = sorted({*KNOWN_LOGGERS, *brought})
    near = difflib.get_close_matches(spec, known, n=1)
    raise ConfigError(
        f"logger {spec!r} is not known, expected one of {', '.join(known)} or an import path",
        hint=f"did you mean {near[0]}?" if near else "write your own as my_pkg.my_module:MyLogger",
    )


def _brought_by_packages() -> dict[str, list[EntryPoint]]:
    """The loggers that installed packages bring, by name."""
    brought: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name not in _BUILTIN and point.value not in [other.value for other in brought.get(point.name, [])]:
            brought.setdefault(point.name, []).append(point)
    return brought


def _load(spec: str, points: list[EntryPoint]) -> object:
    if len(points) > 1:
        owners = ", ".join(f"{point.value} of {point.dist.name if point.dist else '?'}" for point in points)
        raise ConfigError(
            f"logger {spec!r} is brought by {len(points)} packages: {owners}",
            hint=f"give the import path of the one you mean, for example {points[0].value}",
        )
    return _find(spec, points[0].value)


def _build(spec: str, target: object) -> Logger:
    lacks = _missing_methods(target)
    if isinstance(target, type) or (lacks and callable(target)):
        try:
            target = target()
        except HarnessError:
            raise  # it says what to do
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


def _find(spec: str, path: str) -> object:
    module_name, _, attribute = path.partition(":")
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
