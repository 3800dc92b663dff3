"""Says which steps of a run are captured: torch.profiler's schedule as windows on the global step.

torch asks its schedule anew at every step. Here the windows are computed instead, so that the loop knows the
one step at which it has to do something and compares a single integer until then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from harness.errors import RecipeError

MAX_ACTIVE = 64
"""Most recorded steps in one window."""

CaptureState = Literal["off", "warmup", "active", "adjacent"]
"""What a step is to the capture; `adjacent` steps are next to a window, where it is opened and written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Consecutive steps that are warmed up for or recorded; all numbers are global steps, counted from 1."""

    first_warmup: int
    """The window's first step; equal to `first_active` where there is no warmup."""
    first_active: int
    """First recorded step; names the trace file."""
    last_active: int
    """Last recorded step, inclusive."""

    def state(self, step: int) -> CaptureState:
        """What `step` is to this window."""
        if self.first_active <= step <= self.last_active:
            return "active"
        if self.first_warmup <= step < self.first_active:
            return "warmup"
        return "adjacent" if step in (self.first_warmup - 1, self.last_active + 1) else "off"


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """torch.profiler's schedule, on the run's global step (torch's index is the step minus 1).

    After `skip_first` steps the cycle `wait`, `warmup`, `active` runs `repeat` times.

    Example:
        >>> schedule = Schedule(skip_first=1, wait=2, warmup=1, active=2, repeat=2)
        >>> [(window.first_active, window.last_active) for window in schedule.windows()]
        [(5, 6), (10, 11)]

    Raises:
        RecipeError: A value is no whole number, is negative, or `active` is not in 1..64.
    """

    skip_first: int = 0
    """Steps before the first cycle, once. They hold what no later step repeats: compilation, cold caches."""
    wait: int = 0
    """Steps at the start of each cycle in which no profiler exists at all."""
    warmup: int = 1
    """Steps in which the profiler is prepared but nothing is kept: the first profiled step is always slow."""
    active: int
    """Recorded steps, at most 64: kineto keeps everything in memory, about 2 MB a step for a small model."""
    repeat: int = 1
    """Number of cycles; 0 goes on to the end of the run (or of the budget)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise RecipeError(f"schedule.{field.name} = {value!r} is not a whole number of 0 or more")
        if self.active == 0:
            raise RecipeError(
                "schedule.active = 0 records nothing; expected 1 or more",
                hint="to capture nothing use the recipe `off`",
            )
        if self.active > MAX_ACTIVE:
            raise RecipeError(
                f"schedule.active = {self.active} is more than {MAX_ACTIVE} steps in one window; "
                "kineto keeps everything in memory until the window ends",
                hint="record fewer steps and set schedule.repeat for more windows",
            )

    @property
    def cycle(self) -> int:
        """Steps from the start of one cycle to the start of the next."""
        return self.wait + self.warmup + self.active

    def windows(self) -> Iterator[Window]:
        """All windows in order; without end where `repeat` is 0."""
        window = self.next_window(0)
        while window is not None:
            yield window
            window = self.next_window(window.first_warmup)

    def next_window(self, after_step: int) -> Window | None:
        """The first window that begins after `after_step`; None where there is none.

        A window whose warmup has begun by then is left out: it could only be recorded in part.
        """
        first = self.skip_first + self.wait + 1
        num_begun = max(0, -(-(after_step + 1 - first) // self.cycle))
        return self._window(num_begun)

    def state(self, step: int) -> CaptureState:
        """What `step` is by plan. What really happened is what `Capture.on_step_end` returns."""
        index = (step - self.skip_first - 1) // self.cycle
        near = [self._window(number) for number in (index - 1, index, index + 1) if number >= 0]
        states = {window.state(step) for window in near if window is not None}
        for state in ("active", "warmup", "adjacent"):
            if state in states:
                return state
        return "off"

    def _window(self, number: int) -> Window | None:
        if self.repeat and number >= self.repeat:
            return None
        first = self.skip_first + number * self.cycle + self.wait + 1
        return Window(
            first_warmup=first,
            first_active=first + self.warmup,
            last_active=first + self.warmup + self.active - 1,
        )
