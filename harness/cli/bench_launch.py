"""What `harness bench` does: try the workload, say the plan, measure all rows in turn, and show them."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from harness.cli.launch import NONE
from harness.cli.problems import find_problems
from harness.cli.terminal import say, write_json, write_lines
from harness.errors import BenchError, ConfigError, RunDirError
from harness.units import NS_PER_S, format_duration_ns

if TYPE_CHECKING:
    from harness.bench.probe import Probe
    from harness.bench.process import Work
    from harness.bench.spec import CaseResult, CaseSpec
    from harness.bench.suite import Case, Plan, SuiteOptions

DEFAULT_LOGGERS = ("tensorboard",)
CHILD = "harness.cli.bench_child"
FOLDER_PREFIX = ".bench-"
"""Hidden, so that `harness ls` does not show it."""
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRequest:
    """The options of `harness bench`, as typed."""

    workload: str
    """A bundled workload, or the import path of a build function."""
    options: Mapping[str, str]
    """The build function's options."""
    profile: str
    """A recipe's name or file."""
    loggers: tuple[str, ...]
    """Empty for the default one; `none` alone for none."""
    loop: str
    """`trainer` or `session`."""
    processes: int | None
    """Of each row."""
    steps: int | None
    """Of each loop in a process."""
    root: Path
    """Where the temporary folder is made."""


def launch(request: BenchRequest, *, as_json: bool) -> None:
    """Measure, then print the tables or the JSON document to stdout.

    Raises:
        HarnessError: Something that was asked for cannot work, or a process ended without a result.
        SystemExit: The workload cannot be trained; the process that tried has said why. Or SIGTERM.
        KeyboardInterrupt: Ctrl-C. No process and no file is left.
    """
    options = _checked(request)
    from harness.bench.figures import row_figures
    from harness.bench.suite import make_cases, make_plan
    from harness.cli.bench_table import document, table_lines

    began, began_s = datetime.now(UTC), time.monotonic()
    with _ended_by_sigterm(), _folder(request.root) as folder:
        probe, process_s = _try(options, folder)
        plan = make_plan(options, probe, start_s=max(process_s - probe.trained_s, 0.0))
        _say_plan(options, probe, plan)
        cases = make_cases(options, plan, has_windows=probe.has_windows)
        results = _measure(cases, plan, folder)
    _say_problems(cases, results)
    rows = row_figures(zip(cases, results, strict=True))
    if as_json:
        took_s = round(time.monotonic() - began_s, 1)
        write_json(document(options, plan, results, rows, began=began, took_s=took_s))
    else:
        write_lines(table_lines(options, plan, results, rows))


def _checked(request: BenchRequest) -> SuiteOptions:
    """Find plain slips now: importing torch takes seconds."""
    from harness.capture.recipe import Recipe
    from harness.loop.options import ALWAYS_ON

    Recipe.load(request.profile)
    if NONE in request.loggers and len(request.loggers) > 1:
        raise ConfigError("--logger none together with other loggers", hint="give none alone, or the others")
    for name in ALWAYS_ON:
        if name in request.loggers:
            raise ConfigError(
                f"--logger {name}: every run has it, and the row `recorder` measures it",
                hint="leave it out",
            )
    from harness.bench.suite import SuiteOptions

    loggers = request.loggers or DEFAULT_LOGGERS
    return SuiteOptions(
        workload=request.workload,
        workload_options=dict(request.options),
        loop="session" if request.loop == "session" else "trainer",
        loggers=() if loggers == (NONE,) else loggers,
        profile=request.profile,
        num_processes=request.processes,
        num_steps=request.steps,
    )


@contextlib.contextmanager
def _folder(root: Path) -> Iterator[Path]:
    """A temporary folder on the disk where runs are; a root that was made for it goes too."""
    existed = root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(prefix=FOLDER_PREFIX, dir=root.resolve(), ignore_cleanup_errors=True)
    except OSError as error:
        raise RunDirError(
            f"--root {root}: no folder can be made in it: {error.strerror or error}",
            hint="give a folder that can be written to; the measured runs are written there and removed",
        ) from error
    try:
        with folder as path:
            yield Path(path)
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # somebody else has put something there meanwhile
                root.rmdir()


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM as an exception, so that processes and files go."""

    def end(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _try(options: SuiteOptions, folder: Path) -> tuple[Probe, float]:
    from harness.bench.probe import Probe

    say(f"trying {options.workload}: training it for a moment")
    begin_s = time.monotonic()
    probe = _run("probe", options.probe, folder, Probe)
    return probe, time.monotonic() - begin_s


def _run(work: Work, spec: CaseSpec, folder: Path, kind: type[_Result]) -> _Result:
    """One process. What it said is passed on where it failed."""
    import msgspec

    from harness.bench.process import run_child

    with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as root:
        ended = run_child(work, spec, root=Path(root), module=CHILD)
    if ended.returncode == 0:
        return msgspec.json.decode(ended.out, type=kind)
    for line in ended.lines:
        say(line)
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        raise BenchError(
            f"the process that measures {spec.workload!r} was ended by {name}",
            hint="two models and up to 256 MB of batches have to fit into memory; dmesg says what the kernel ended",
        )
    raise SystemExit(ended.returncode)


def _measure(cases: Sequence[Case], plan: Plan, folder: Path) -> list[list[CaseResult]]:
    """Each case in turn, and that so often as the plan says: what the machine does meanwhile meets all of them."""
    from harness.bench.spec import CaseResult

    results: list[list[CaseResult]] = [[] for _ in cases]
    total = plan.num_cases * plan.num_processes
    begin_s, done = time.monotonic(), 0
    with _Progress() as progress:
        for number in range(plan.num_processes):
            for case, found in zip(cases, results, strict=True):
                left = f", {_duration((time.monotonic() - begin_s) / done * (total - done))} left" if done else ""
                progress.show(
                    f"process {done + 1} of {total}: {case.rows[0].name}, round {number + 1}{left}", done=done
                )
                found.append(_run("case", case.spec, folder, CaseResult))
                done += 1
    return results


class _Progress:
    """One line that is written over on a terminal; elsewhere a line now and then."""

    EVERY = 10

    def __init__(self) -> None:
        self._on_terminal = sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._write("\r\x1b[K")

    def show(self, text: str, *, done: int) -> None:
        if self._on_terminal:
            self._write(f"\r\x1b[K{text}")
        elif done % self.EVERY == 0:
            say(text)

    def _write(self, text: str) -> None:
        if self._on_terminal:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(text)
                sys.stderr.flush()


def _say_plan(options: SuiteOptions, probe: Probe, plan: Plan) -> None:
    say(
        f"a step of {options.workload} takes about {format_duration_ns(probe.step_us * 1e3)}; "
        f"{plan.num_cases} cases in {plan.num_processes} processes each, {plan.num_steps} steps of either loop "
        f"in a process: about {_duration(plan.expected_s)}"
    )


def _say_problems(cases: Sequence[Case], results: Sequence[Sequence[CaseResult]]) -> None:
    """What failed without ending a run makes its row worth less."""
    for case, found in zip(cases, results, strict=True):
        for problem in sorted({line for result in found for line in find_problems(result.health)}):
            say(f"warning: {case.rows[0].name}: {problem}")


def _duration(seconds: float) -> str:
    return format_duration_ns(round(seconds) * NS_PER_S) if seconds >= 1 else "a second"
