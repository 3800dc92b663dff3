"""The tables of a recipe that are plain options: what to record, how much at most, how often to sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from harness.errors import RecipeError

_ACTIVITIES = ("cpu", "cuda")
_MIN_INTERVAL_S = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileOptions:
    """What torch.profiler records inside a window; its own names.

    Raises:
        RecipeError: A value has the wrong type, or `activities` is not `cpu` with or without `cuda`.
    """

    activities: tuple[str, ...] = _ACTIVITIES
    """`cpu` and `cuda`. `cuda` counts only where the run is on a CUDA device, so one recipe serves both."""
    record_shapes: bool = False
    """Keep the input shapes of every operator."""
    profile_memory: bool = False
    """Record every allocation and release of tensor memory."""
    with_stack: bool = False
    """Record the Python stack. Costs the most: files grow by half, steps slow down several times."""
    with_flops: bool = False
    """Estimate the FLOPs of matrix multiplications and convolutions; torch also keeps shapes for it."""
    with_modules: bool = False
    """Record which `nn.Module` an operator was called from."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "activities", _checked_activities(self.activities))
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name != "activities" and not isinstance(value, bool):
                raise RecipeError(f"profile.{option.name} = {value!r} is neither true nor false")


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """When to stop capturing, for the whole run. Checked before a window opens, never inside one.

    Raises:
        RecipeError: A limit is no whole number of 1 or more.
    """

    max_traces: int = 20
    """At most this many trace files of a rank."""
    max_bytes: int = 2_000_000_000
    """No further window once a rank's finished traces take this much disk."""

    def __post_init__(self) -> None:
        for name, value in (("max_traces", self.max_traces), ("max_bytes", self.max_bytes)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RecipeError(f"budget.{name} = {value!r} is not a whole number of 1 or more")

    def is_spent(self, *, num_traces: int, size_bytes: int) -> bool:
        """Whether a rank that has this many traces of this size may not open another window."""
        return num_traces >= self.max_traces or size_bytes >= self.max_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemOptions:
    """How often system metrics are sampled.

    Raises:
        RecipeError: An interval is no number of seconds of 0.01 or more.
    """

    interval_s: float = 1.0
    """Outside windows."""
    window_interval_s: float = 0.05
    """Inside a window, where a second would be several steps long."""

    def __post_init__(self) -> None:
        for name, value in (("interval_s", self.interval_s), ("window_interval_s", self.window_interval_s)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < _MIN_INTERVAL_S:
                raise RecipeError(f"system.{name} = {value!r} is not a number of seconds of {_MIN_INTERVAL_S} or more")
            object.__setattr__(self, name, float(value))


def _checked_activities(value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and "cpu" in value and all(item in _ACTIVITIES for item in value):
        return tuple(item for item in _ACTIVITIES if item in value)
    raise RecipeError(
        f"profile.activities = {value!r} is not a list of `cpu` and perhaps `cuda`",
        hint="`cpu` must be in it: without it a trace has neither steps nor phases",
    )
