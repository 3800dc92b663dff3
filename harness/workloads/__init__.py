"""Complete trainings to profile: bundled ones, and the user's own by import path. Loaded lazily."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["BUNDLED", "Workload", "load_workload"]

if TYPE_CHECKING:
    from harness.workloads.base import Workload
    from harness.workloads.load import BUNDLED, load_workload

_LAZY = {
    "BUNDLED": "harness.workloads.load",
    "Workload": "harness.workloads.base",
    "load_workload": "harness.workloads.load",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'harness.workloads' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
