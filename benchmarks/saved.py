"""Reads the JSON that pytest-benchmark saves, and refuses to compare what was measured on different machines.

A benchmark of `recorded.record` has one value per figure and process in `extra_info`. Any other has the times of its
rounds in `stats.data`; they become the figure `call_us`. Thousands of rounds of one process are not thousands of
measurements: a machine's speed drifts, so they count as the medians of at most fifty stretches.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import metadata
from os import cpu_count
from pathlib import Path
from typing import Any

import msgspec
from pytest_benchmark.plugin import get_cpu_info

from harness.errors import ConfigError
from harness.intervals import Interval, median_interval

CALL_FIGURE = "call_us"
"""The figure of a benchmark that pytest-benchmark timed itself: per call, on the benchmark's clock."""
MAX_STRETCHES = 50
_SAVE_HINT = (
    "save one with `make benchmark`, or with `python -m pytest benchmarks --benchmark-enable --benchmark-json FILE`"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What has to be the same for two measurements to be compared."""

    cpu: str
    """The processor's brand."""
    num_cpus: int
    """Cores that the system shows."""
    machine: str
    """The architecture: `x86_64`."""
    system: str
    """`Linux`."""
    torch: str
    """Its version."""
    python: str
    """Its version; figures are comparable where major and minor are equal."""

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.num_cpus} cores, {self.system} {self.machine}, torch {self.torch}, Python {self.python}"
        )

    def differences(self, other: Machine) -> list[str]:
        """Names of the fields that make the two incomparable."""
        mine, theirs = self._compared(), other._compared()
        return [name for name, value in mine.items() if value != theirs[name]]

    def _compared(self) -> dict[str, object]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {**values, "python": self.python.split(".")[:2]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """What was measured."""

    id: str
    """The full hash, or `unversioned`."""
    dirty: bool
    """Whether files had been changed since."""

    def __str__(self) -> str:
        return self.id[:12] + (" with changes" if self.dirty else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """One benchmark's figures."""

    name: str
    """`test_step.py::test_added_to_a_step[session]`: pytest's name, without the folder."""
    group: str
    """What it is shown with."""
    value: str
    """The figure that stands for it."""
    values: Mapping[str, Sequence[float]]
    """By figure: one value for each process, round or stretch of rounds. A figure's name ends in its unit."""
    timer: str
    """pytest-benchmark's clock; `clock` where the figures come from elsewhere."""

    def interval(self, figure: str) -> Interval:
        """Median and confidence interval of a figure."""
        return median_interval(self.values[figure])


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A saved file."""

    path: Path
    """Where it was read from."""
    machine: Machine
    """Where it was measured."""
    commit: Commit
    """What was measured."""
    datetime: str
    """When, as ISO 8601 in UTC."""
    benchmarks: Mapping[str, Benchmark]
    """By name, in the order they ran."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _RawMachine:
    machine: str
    system: str
    torch: str
    python: str
    num_cpus: int
    cpu: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _RawCommit:
    id: str
    dirty: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _RawBenchmark:
    fullname: str
    group: str | None
    extra_info: dict[str, Any]
    options: dict[str, Any]
    stats: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _RawFile:
    machine_info: _RawMachine
    commit_info: _RawCommit
    datetime: str
    benchmarks: list[_RawBenchmark] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recorded:
    value: str
    values: dict[str, list[float]]


def read_saved(path: Path) -> Saved:
    """Read a saved file.

    Raises:
        ConfigError: There is no such file, or it is not one that this suite saved with its figures.
    """
    try:
        raw = msgspec.json.decode(path.read_bytes(), type=_RawFile)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint=_SAVE_HINT) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not a file of this suite, saved by pytest-benchmark: {error}", hint=_SAVE_HINT
        ) from error
    if not raw.benchmarks:
        raise ConfigError(f"{path} holds no benchmark; expected at least one", hint=_SAVE_HINT)
    benchmarks: dict[str, Benchmark] = {}
    for entry in raw.benchmarks:
        benchmark = _benchmark(path, entry)
        if benchmark.name in benchmarks:
            raise ConfigError(
                f"{path} holds two benchmarks called {benchmark.name}", hint="save one run of the suite only"
            )
        benchmarks[benchmark.name] = benchmark
    return Saved(
        path=path,
        machine=_machine(raw.machine_info),
        commit=Commit(id=raw.commit_info.id, dirty=raw.commit_info.dirty),
        datetime=raw.datetime,
        benchmarks=benchmarks,
    )


def refuse_other_machine(saved: Saved, other: Saved | Machine, *, force: bool = False) -> None:
    """Make sure that the figures of a file may be held against those of another, or against this machine.

    Args:
        saved: The file.
        other: A second file, or a machine: `this_machine()`.
        force: Look anyway.

    Raises:
        ConfigError: It is another machine, torch or Python; the message names both.
    """
    machine, name = (other.machine, str(other.path)) if isinstance(other, Saved) else (other, "this machine")
    different = saved.machine.differences(machine)
    if different and not force:
        raise ConfigError(
            f"{saved.path} was measured elsewhere ({', '.join(different)} differ):\n"
            f"  {saved.path}: {saved.machine}\n  {name}: {machine}",
            hint="measure again here with `make benchmark`, or give --force to look anyway",
        )


@cache
def this_machine() -> Machine:
    """The machine and versions of this process. Takes a second; loads no torch."""
    return Machine(
        cpu=_brand(get_cpu_info()),
        num_cpus=cpu_count() or 1,
        machine=platform.machine(),
        system=platform.system(),
        torch=metadata.version("torch"),
        python=platform.python_version(),
    )


def without_folder(fullname: str) -> str:
    """`benchmarks/test_step.py::test_x[a/b]` to `test_step.py::test_x[a/b]`."""
    file, separator, test = fullname.partition("::")
    return file.rpartition("/")[2] + separator + test


def stretches(values: Sequence[float]) -> list[float]:
    """Medians of at most fifty stretches of values, in order; fewer than twice fifty values stay as they are."""
    length = len(values) // MAX_STRETCHES
    if length < 2:
        return list(values)
    starts = range(0, MAX_STRETCHES * length, length)
    ends = [*starts[1:], len(values)]
    return [statistics.median(values[start:end]) for start, end in zip(starts, ends, strict=True)]


def _machine(raw: _RawMachine) -> Machine:
    return Machine(
        cpu=_brand(raw.cpu),
        num_cpus=raw.num_cpus,
        machine=raw.machine,
        system=raw.system,
        torch=raw.torch,
        python=raw.python,
    )


def _brand(cpu: Mapping[str, Any]) -> str:
    return str(cpu.get("brand_raw") or "unknown processor")


def _benchmark(path: Path, raw: _RawBenchmark) -> Benchmark:
    name = without_folder(raw.fullname)
    try:
        if "values" in raw.extra_info:
            figures = msgspec.convert(raw.extra_info, _Recorded)
        else:
            rounds = msgspec.convert(raw.stats.get("data", []), list[float])
            figures = _Recorded(value=CALL_FIGURE, values={CALL_FIGURE: [1e6 * time_s for time_s in stretches(rounds)]})
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: the figures of {name} are malformed: {error}", hint=_SAVE_HINT) from error
    empty = [figure for figure, values in figures.values.items() if not values]
    if empty or figures.value not in figures.values:
        raise ConfigError(
            f"{path}: {name} has no values of {', '.join(empty) or repr(figures.value)}; expected one for each round",
            hint="--benchmark-autosave leaves them out: " + _SAVE_HINT,
        )
    return Benchmark(
        name=name,
        group=raw.group or "other",
        value=figures.value,
        values=figures.values,
        timer=str(raw.options.get("timer", "unknown")),
    )
