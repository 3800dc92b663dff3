"""Which metrics a logger is given, how often, and whether the run can do without it: the same rules for any logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from harness.errors import ConfigError
from harness.loggers.base import Logger, RunInfo
from harness.loggers.metric_names import SYSTEM_PREFIX
from harness.loggers.registry import make_logger
from harness.units import Duration, DurationUnit

_MAX_KNOWN_NAMES = 10_000


class RuledLogger:
    """A logger that is given only some of the metrics, or that the run cannot do without.

    Texts and parameters go through as they are.

    Example:
        Trainer(..., loggers=[RuledLogger("wandb", include=["loss/*", "system/*"], every="10ba"), "tensorboard"])

    Args:
        logger: The logger, or its name.
        include: Patterns of the metrics that are taken, as in a shell (`loss/*`); none takes all. System samples go by
            `system/` and their name.
        exclude: Patterns of the metrics that are left out after all.
        every: Of each metric the first value in every so many steps (`10ba`) or in every stretch of time (`30sec`), so
            that one that is logged seldom is not lost. None takes all.
        required: Whether the run ends when the logger fails or hangs: after the step in progress, with everything
            written, else where it is closed.

    Raises:
        ConfigError: A pattern is no text, or `every` counts neither steps nor time.
        MissingExtraError: The package that the logger needs is not installed.
    """

    def __init__(
        self,
        logger: str | Logger,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        every: str | Duration | None = None,
        required: bool = False,
    ) -> None:
        self.logger = make_logger(logger) if isinstance(logger, str) else logger
        self.name = self.logger.name
        self.required = required
        self._include = _patterns("include", include)
        self._exclude = _patterns("exclude", exclude)
        self._every = None if every is None else _every(every)
        self._wanted: dict[str, bool] = {}
        self._taken: dict[str, int] = {}
        # Asked for by name, so they are there only if the logger has them.
        for method in ("on_progress", "file_health"):
            if hasattr(self.logger, method):
                setattr(self, method, getattr(self.logger, method))
        if hasattr(self.logger, "log_system"):
            self.log_system = self._log_system

    def open(self, run: RunInfo) -> None:
        """Open the logger."""
        self.logger.open(run)

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        """Hand on what the rules let through; nothing if that is nothing."""
        taken = self._take("", step, metrics, time_ns)
        if taken:
            self.logger.log_metrics(step, taken, time_ns=time_ns)

    def _log_system(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        taken = self._take(SYSTEM_PREFIX, step, metrics, time_ns)
        if taken:
            log_system: Any = self.logger.log_system  # type: ignore[attr-defined]
            log_system(step, taken, time_ns=time_ns)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Hand on the parameters."""
        self.logger.log_params(params)

    def log_text(self, line: str, *, time_ns: int) -> None:
        """Hand on the line."""
        self.logger.log_text(line, time_ns=time_ns)

    def flush(self) -> None:
        """Flush the logger."""
        self.logger.flush()

    def close(self) -> None:
        """Close the logger."""
        self.logger.close()

    def _take(self, prefix: str, step: int, metrics: Mapping[str, float], time_ns: int) -> dict[str, float]:
        number = self._number(step, time_ns)
        return {
            name: value
            for name, value in metrics.items()
            if self._wants(prefix + name) and self._is_due(prefix + name, number)
        }

    def _number(self, step: int, time_ns: int) -> int | None:
        """Which stretch of steps or time this is; None without thinning."""
        if self._every is None:
            return None
        if self._every.unit is DurationUnit.SECOND:
            return time_ns // self._every.value_ns
        return step // int(self._every.value)

    def _is_due(self, name: str, number: int | None) -> bool:
        if number is None:
            return True
        if self._taken.get(name) == number:
            return False
        if len(self._taken) >= _MAX_KNOWN_NAMES:
            self._taken.clear()
        self._taken[name] = number
        return True

    def _wants(self, name: str) -> bool:
        wanted = self._wanted.get(name)
        if wanted is None:
            if len(self._wanted) >= _MAX_KNOWN_NAMES:
                self._wanted.clear()
            wanted = (not self._include or _matches(name, self._include)) and not _matches(name, self._exclude)
            self._wanted[name] = wanted
        return wanted


def inner_logger(logger: Logger) -> Logger:
    """The logger itself, whatever rules it is under."""
    while isinstance(logger, RuledLogger):
        logger = logger.logger
    return logger


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _patterns(option: str, patterns: Sequence[str]) -> tuple[str, ...]:
    if isinstance(patterns, str):
        raise ConfigError(f"{option}={patterns!r} is a string, not a list", hint=f"give [{patterns!r}]")
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise ConfigError(f"{option} holds {pattern!r}, expected a pattern", hint='write ["loss/*"]')
    return tuple(patterns)


def _every(every: str | Duration) -> Duration:
    duration = Duration.parse(every, option="every")
    if duration.unit not in (DurationUnit.BATCH, DurationUnit.SECOND):
        raise ConfigError(f"every={duration} counts neither steps nor time", hint="give 10ba or 30sec")
    return duration
