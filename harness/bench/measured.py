"""What one process measured; without torch, for those who only read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One process's measurement. Times per step in µs; CPU time unless said."""

    num_steps: int
    """Steps that were counted, of each loop."""
    bare_us: float
    """Median of the bare step."""
    thread_us: float
    """What the measured loop's step takes more, on the training thread."""
    background_us: float
    """CPU time of the process's other threads."""
    children_us: float
    """CPU time of child processes that have ended."""
    wall_us: float
    """What the measured loop's step takes more, on the wall clock."""
    null_us: float
    """The bare loop's odd steps against its even ones: what cannot be told from zero."""
    measured_share: float
    """The measured loop's share of the wall time. What goes by the clock and not by the step counts double
    otherwise."""

    @property
    def total_us(self) -> float:
        """All threads and children together."""
        return self.thread_us + self.background_us + self.children_us


@dataclass(frozen=True, kw_only=True, slots=True)
class Aside:
    """Steps of the measured loop that were kept out of the comparison. Times in µs, more than the median bare step."""

    num_steps: int
    """How many there were."""
    thread_us: float
    """Median of what such a step takes more, CPU time of the training thread."""
    wall_us: float
    """Median of what it takes more on the wall clock."""
