"""Small real models: a convolutional network for digits and a GPT. Loaded lazily, as both need torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["GPT", "GPTConfig", "MNISTModel", "mnist_model"]

if TYPE_CHECKING:
    from harness.models.gpt import GPT, GPTConfig
    from harness.models.mnist import MNISTModel, mnist_model

_LAZY = {
    "GPT": "harness.models.gpt",
    "GPTConfig": "harness.models.gpt",
    "MNISTModel": "harness.models.mnist",
    "mnist_model": "harness.models.mnist",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'harness.models' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
