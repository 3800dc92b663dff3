"""The run's account of itself: what the harness took, by part, thread and child process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from harness.timeline.phases import BETWEEN, HARNESS_PARTS
from harness.timeline.step_file import PhaseTotals


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnCost:
    """What this attempt's harness cost. Times in nanoseconds."""

    steps_ns: int
    """Time inside steps, evaluation left out."""
    training_ns: int
    """Time inside steps and of what is done between them: checkpoints, evaluation, hooks."""
    training_thread_ns: dict[str, int]
    """Wall time on the training thread by part: `loop`, `loggers`, `checkpoint`, `capture`; ends of epochs included."""
    threads_cpu_ns: dict[str, int]
    """CPU time of the harness's threads."""
    children_cpu_ns: dict[str, int]
    """CPU time of the harness's child processes."""

    @property
    def training_thread_pct(self) -> float | None:
        """The training thread's share, in percent of the training time; None without steps."""
        return self._pct(sum(self.training_thread_ns.values()))

    @property
    def background_pct(self) -> float | None:
        """CPU time of threads and children, in percent of the training time; None without steps."""
        return self._pct(sum(self.threads_cpu_ns.values()) + sum(self.children_cpu_ns.values()))

    def _pct(self, ns: int) -> float | None:
        return round(100 * ns / self.training_ns, 3) if self.steps_ns else None

    def to_dict(self) -> dict[str, object]:
        """Fields and percentages, for `run.json`."""
        return {
            **asdict(self),
            "training_thread_pct": self.training_thread_pct,
            "background_pct": self.background_pct,
        }


def account(totals: PhaseTotals, *, threads_cpu_ns: Mapping[str, int], children_cpu_ns: Mapping[str, int]) -> OwnCost:
    """Sum up an attempt."""
    by_part = totals.in_steps_ns + totals.between_ns
    return OwnCost(
        steps_ns=totals.step_ns,
        training_ns=int(totals.in_steps_ns.sum() + totals.between_ns.sum() - totals.between_ns[BETWEEN]),
        training_thread_ns={name: int(by_part[number]) for number, name in HARNESS_PARTS.items()},
        threads_cpu_ns=dict(threads_cpu_ns),
        children_cpu_ns=dict(children_cpu_ns),
    )
