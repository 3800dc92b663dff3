"""Where what is logged goes: one protocol, one writer thread, and the loggers that come with the package."""

from __future__ import annotations

from harness.loggers.base import BaseLogger, Logger, Progress, RunInfo
from harness.loggers.registry import make_logger

__all__ = ["BaseLogger", "Logger", "Progress", "RunInfo", "make_logger"]
