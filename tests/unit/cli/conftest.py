"""The commands set up logging; a test leaves it as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_handlers_left() -> Iterator[None]:
    root, harness = logging.getLogger(), logging.getLogger("harness")
    handlers, level = list(root.handlers), harness.level
    yield
    root.handlers[:] = handlers
    harness.setLevel(level)
