"""Where what is logged goes: one protocol, one writer thread, and the loggers that come with the package."""

from __future__ import annotations

from harness.loggers.base import BaseLogger, Logger, Progress, RunInfo
from harness.loggers.registry import make_logger
from harness.loggers.rules import RuledLogger

__all__ = ["BaseLogger", "Logger", "Progress", "RuledLogger", "RunInfo", "make_logger"]
