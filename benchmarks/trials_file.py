"""Reads what `make benchmark-gate` found out about the comparison, and says it for `docs/overhead.md`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from figures import is_counted
from gate_trials import FORMAT, SLOWED
from kept_file import read_kept


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """New minus base, µs per step."""

    low: float | None
    mid: float
    high: float | None


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison."""

    alarm: bool
    """Whether anything was called slower by more than the limit."""
    found: bool
    """Whether the step of the Trainer was."""
    base_us: float
    """What the Trainer adds to a step."""
    change_us: Change
    """Of that; of their number, where it was found by counting operators."""
    smallest_seen_us: float
    """The change that would have been found with a chance of 80 %."""
    steps: int
    """In each process."""
    figure: str = "total_us"
    """What it was found by: CPU time, or the wall clock."""
    what: str = ""
    """What was planted."""

    @property
    def is_counted(self) -> bool:
        """Whether it was found by the number of operators, which no noise is in."""
        return is_counted(self.figure)


class Trials(msgspec.Struct, frozen=True, kw_only=True):
    """The file."""

    format: int
    date: str
    machine: str
    commit: str
    benchmarks: list[str]
    rounds: int
    limit_pct: float
    planted: list[Trial]
    equal: list[Trial]


def read_trials(path: Path) -> Trials:
    """Read a file of `make benchmark-gate`.

    Raises:
        ConfigError: It cannot be read, or has another format.
    """
    return read_kept(path, Trials, option="--trials", target="benchmark-gate", known_format=FORMAT)


def trial_parts(trials: Trials) -> Iterator[str]:
    """Paragraphs in Markdown; the planted slowdowns are a list of rows for a table."""
    alarms = sum(trial.alarm for trial in trials.equal)
    yield (
        f"`make benchmark-compare` tried out on {trials.date} with commit {trials.commit} on {trials.machine}: "
        f"{len(trials.benchmarks)} benchmarks, {trials.rounds} pairs of processes, "
        f"a limit of {trials.limit_pct:g} %. `make benchmark-gate` does it again.\n"
    )
    if trials.equal:
        yield (
            f"The tree against a copy of itself, {len(trials.equal)} times, {_steps(trials.equal)} steps in each "
            f"process: {alarms} alarms.\n"
        )
    if trials.planted:
        found = [trial for trial in trials.planted if trial.found and not trial.is_counted]
        smallest = min(found, key=lambda trial: trial.change_us.mid, default=None)
        if smallest is not None:
            yield (
                f"The smallest planted slowdown that was found, with {_steps(trials.planted)} steps in each process: "
                f"{smallest.what}, {smallest.change_us.mid:.1f} µs on top of {smallest.base_us:.1f} µs.\n"
            )


def _steps(trials: list[Trial]) -> str:
    return " or ".join(f"{steps:,}" for steps in sorted({trial.steps for trial in trials}))


def planted_rows(trials: Trials) -> Iterator[tuple[str, ...]]:
    """Planted, measured change of `SLOWED`, smallest change that could have been seen, verdict."""
    for trial in trials.planted:
        change = trial.change_us
        bounds = f" [{change.low:.1f}, {change.high:.1f}]" if change.low is not None and change.high is not None else ""
        verdict = f"found by {trial.figure}" if trial.found else "not found"
        if trial.is_counted:
            yield trial.what, f"{change.mid:+.0f} operator", "1 operator", verdict
        else:
            yield trial.what, f"{change.mid:+.1f}{bounds}", f"{trial.smallest_seen_us:.1f}", verdict


PLANTED_TITLES = ("planted", f"change of `{SLOWED.partition('::')[2]}`, µs", "could have been seen, µs", "verdict")
