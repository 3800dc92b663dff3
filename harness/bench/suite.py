"""What is measured of a user's workload: the rows of the table, and how long each is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.bench.probe import Probe
from harness.bench.spec import IDLE, CaseSpec, Loop

Per = Literal["step", "recorded step", "window", "checkpoint"]
RECORDER = "recorder"
"""The row that the others are compared with: every run has a recorder, and JSONL and text."""
TARGET_S = 180.0
"""How long all of it should take."""
NUM_PROCESSES = 5
FEW_PROCESSES = 3
"""Where even the fewest steps take long."""
TOO_LONG_S = 600.0
MIN_STEPS, MAX_STEPS = 20, 4000
MIN_WARMUP_STEPS, MAX_WARMUP_STEPS = 3, 300
MIN_LOOPS_S, MAX_LOOPS_S = 1.5, 10.0
"""How long the two loops of one process should take."""
NUM_SAVES = 5
"""Checkpoints in a process."""
WINDOW_STEPS, WINDOW_WARMUP_STEPS, MAX_WINDOWS = 24, 10, 3
"""From one capture window to the next: the schedule that `CaseSpec.profile` is given. The last one ends before the last
step, and no further one begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteOptions:
    """What the user asks for."""

    workload: str
    """A bundled workload, or the import path of a build function."""
    workload_options: dict[str, str]
    """The build function's options."""
    loop: Loop = "trainer"
    """`trainer` or `session`."""
    loggers: tuple[str, ...] = ("tensorboard",)
    """Each has a row of its own."""
    profile: str | None = "quick"
    """The recipe whose windows are measured; None measures none."""
    num_processes: int | None = None
    """Fresh processes of each row; None takes what fits."""
    num_steps: int | None = None
    """Steps of each loop in a process; None takes what fits."""

    @property
    def probe(self) -> CaseSpec:
        """The case that finds out whether all this can be measured."""
        return replace(self.case, loggers=self.loggers, profile=self.profile)

    @property
    def case(self) -> CaseSpec:
        """What all cases have in common."""
        return CaseSpec(
            workload=self.workload,
            workload_options=self.workload_options,
            loop=self.loop,
            # The Trainer logs its loss; a loop of one's own logs what it is told to.
            num_scalars=1 if self.loop == "session" else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is measured."""

    num_processes: int
    """Of each case."""
    num_steps: int
    """Counted steps of each loop in a process."""
    warmup_steps: int
    """Steps before those."""
    num_cases: int
    """Cases, each in that many processes."""
    expected_s: float
    """How long it will take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A line of the table."""

    name: str
    """Its key in the JSON document."""
    what: str
    """For people."""
    per: Per = "step"
    """What its figures are for one of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One kind of process, and the rows that are read from it."""

    spec: CaseSpec
    """What it measures."""
    rows: tuple[Row, ...]
    """What it shows."""


def make_plan(options: SuiteOptions, probe: Probe, *, start_s: float) -> Plan:
    """Choose the numbers that were not given, for a total of a few minutes.

    Args:
        options: What is asked for.
        probe: How long a step is.
        start_s: How long a process needs before it trains.
    """
    num_cases = len(list(_cases(options, has_windows=probe.has_windows)))
    num_processes = options.num_processes or NUM_PROCESSES
    two_steps_s = 2 * probe.step_us / 1e6
    loops_s = TARGET_S / (num_cases * num_processes) - start_s
    fitting = int(min(max(loops_s, MIN_LOOPS_S), MAX_LOOPS_S) / max(two_steps_s, 1e-6))
    num_steps = options.num_steps or min(max(fitting, MIN_STEPS), MAX_STEPS)
    warmup_steps = min(max(num_steps // 10, MIN_WARMUP_STEPS), MAX_WARMUP_STEPS)
    process_s = start_s + (num_steps + warmup_steps) * two_steps_s
    if options.num_processes is None and num_cases * num_processes * process_s > TOO_LONG_S:
        num_processes = FEW_PROCESSES
    return Plan(
        num_processes=num_processes,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        num_cases=num_cases,
        expected_s=num_cases * num_processes * process_s,
    )


def make_cases(options: SuiteOptions, plan: Plan, *, has_windows: bool) -> list[Case]:
    """The cases in the table's order, with the plan's numbers."""
    return [replace(case, spec=_sized(case.spec, plan)) for case in _cases(options, has_windows=has_windows)]


def _cases(options: SuiteOptions, *, has_windows: bool) -> Iterator[Case]:
    case = options.case
    loop = "Trainer" if options.loop == "trainer" else "session"
    yield _case(replace(case, loop="bare"), "null", "null")
    yield _case(case, RECORDER, f"{loop}, recorder, JSONL, text")
    for logger in options.loggers:
        yield _case(replace(case, loggers=(logger,)), f"logger {logger}", f"+ {logger}")
    if has_windows:
        yield _case(replace(case, profile=IDLE), "recipe idle", "+ a recipe, between its windows")
        rows = (
            Row(name="recorded step", what=f"a step recorded by {options.profile}", per="recorded step"),
            Row(name="window end", what="the end of its window", per="window"),
        )
        yield Case(spec=replace(case, profile=options.profile), rows=rows)
    yield Case(spec=_saving(case), rows=(Row(name="checkpoint", what="a checkpoint", per="checkpoint"),))
    everything = replace(_saving(case), loggers=options.loggers, profile=IDLE if has_windows else None)
    yield _case(everything, "everything", "everything together")


def _case(spec: CaseSpec, name: str, what: str) -> Case:
    return Case(spec=spec, rows=(Row(name=name, what=what),))


def _saving(case: CaseSpec) -> CaseSpec:
    """The interval is set when the number of steps is known."""
    return replace(case, save_interval="1ba")


def _sized(spec: CaseSpec, plan: Plan) -> CaseSpec:
    sized: dict[str, Any] = {"num_steps": plan.num_steps, "warmup_steps": plan.warmup_steps}
    if spec.profile not in (None, IDLE):
        windows = min(max(plan.num_steps // WINDOW_STEPS, 1), MAX_WINDOWS)
        sized = {"num_steps": windows * WINDOW_STEPS, "warmup_steps": WINDOW_WARMUP_STEPS}
    if spec.save_interval is not None:
        sized["save_interval"] = f"{max(plan.num_steps // NUM_SAVES, 2)}ba"
        sized["trainer_options"] = {"save_num_checkpoints_to_keep": 1}
    return replace(spec, **sized)
