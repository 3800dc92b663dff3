"""A training harness for PyTorch that names a run, profiles it and accounts for its own cost.

`import harness` loads neither torch nor numpy: each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "CheckpointError",
    "ConfigError",
    "Duration",
    "HarnessError",
    "Logger",
    "Recipe",
    "Session",
    "Trainer",
    "Workload",
    "load_trace",
    "session",
]

if TYPE_CHECKING:
    from harness.capture.recipe import Recipe
    from harness.errors import CheckpointError, ConfigError, HarnessError
    from harness.loggers.base import Logger
    from harness.loop.session import Session, session
    from harness.trace.reader import load as load_trace
    from harness.trainer.callback import Callback
    from harness.trainer.trainer import Trainer
    from harness.units import Duration
    from harness.workloads.base import Workload

_LAZY = {
    "Callback": ("harness.trainer.callback", "Callback"),
    "CheckpointError": ("harness.errors", "CheckpointError"),
    "ConfigError": ("harness.errors", "ConfigError"),
    "Duration": ("harness.units", "Duration"),
    "HarnessError": ("harness.errors", "HarnessError"),
    "Logger": ("harness.loggers.base", "Logger"),
    "Recipe": ("harness.capture.recipe", "Recipe"),
    "Session": ("harness.loop.session", "Session"),
    "Trainer": ("harness.trainer.trainer", "Trainer"),
    "Workload": ("harness.workloads.base", "Workload"),
    "load_trace": ("harness.trace.reader", "load"),
    "session": ("harness.loop.session", "session"),
}


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module 'harness' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
