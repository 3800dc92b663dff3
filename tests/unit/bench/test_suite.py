"""What is measured of a workload, how much of it, and what the numbers of the processes become."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.bench.figures import RowFigures, row_figures
from harness.bench.interleaved import Aside, Measured
from harness.bench.probe import Probe
from harness.bench.spec import IDLE, CaseResult, Ledger
from harness.bench.suite import (
    FEW_PROCESSES,
    MAX_STEPS,
    MIN_STEPS,
    NUM_PROCESSES,
    TARGET_S,
    Case,
    Plan,
    SuiteOptions,
    make_cases,
    make_plan,
)
from harness.capture.schedule import Schedule
from harness.cli.bench_table import table_lines

OPTIONS = SuiteOptions(workload="mine:build", workload_options={"lr": "1"}, loggers=("tensorboard", "mine:Own"))
PLAN = Plan(num_processes=3, num_steps=100, warmup_steps=10, num_cases=8, expected_s=1)


def probe(step_us: float, *, has_windows: bool = True) -> Probe:
    return Probe(step_us=step_us, trained_s=2.0, has_windows=has_windows)


def cases(options: SuiteOptions = OPTIONS, *, has_windows: bool = True) -> dict[str, Case]:
    return {case.rows[0].name: case for case in make_cases(options, PLAN, has_windows=has_windows)}


@pytest.mark.parametrize("step_us", [100, 10_000, 100_000])
def test_a_plan_takes_a_few_minutes(step_us: float) -> None:
    plan = make_plan(OPTIONS, probe(step_us), start_s=2.0)
    assert MIN_STEPS <= plan.num_steps <= MAX_STEPS
    assert 60 < plan.expected_s < 2 * TARGET_S


def test_longer_steps_are_measured_less_often() -> None:
    plans = [make_plan(OPTIONS, probe(step_us), start_s=2.0) for step_us in (200, 20_000, 2_000_000)]
    assert plans[0].num_steps > plans[1].num_steps > plans[2].num_steps == MIN_STEPS
    assert [plan.num_processes for plan in plans] == [NUM_PROCESSES, NUM_PROCESSES, FEW_PROCESSES]


def test_numbers_that_are_given_are_taken() -> None:
    plan = make_plan(replace(OPTIONS, num_processes=7, num_steps=123), probe(2e6), start_s=2.0)
    assert (plan.num_processes, plan.num_steps) == (7, 123)


def test_each_logger_has_a_case_and_everything_has_all_of_them() -> None:
    found = cases()
    assert list(found) == [
        "null",
        "recorder",
        "logger tensorboard",
        "logger mine:Own",
        "recipe idle",
        "recorded step",
        "checkpoint",
        "everything",
    ]
    assert len(found) == make_plan(OPTIONS, probe(100), start_s=1).num_cases
    assert {name: case.spec.loggers for name, case in found.items() if case.spec.loggers} == {
        "logger tensorboard": ("tensorboard",),
        "logger mine:Own": ("mine:Own",),
        "everything": ("tensorboard", "mine:Own"),
    }
    everything = found["everything"].spec
    assert (everything.profile, everything.save_interval) == (IDLE, "20ba")
    assert all(case.spec.workload_options == {"lr": "1"} for case in found.values())


def test_a_recipe_that_records_nothing_has_no_rows() -> None:
    found = cases(replace(OPTIONS, profile="off"), has_windows=False)
    assert not {"recipe idle", "recorded step"} & set(found)
    assert found["everything"].spec.profile is None


def test_a_session_logs_a_value_so_that_its_loggers_have_something_to_do() -> None:
    found = cases(replace(OPTIONS, loop="session"))
    assert found["recorder"].spec.loop == "session"
    assert found["recorder"].spec.num_scalars == 1
    assert found["null"].spec.loop == "bare"


def test_windows_end_before_the_last_step_and_no_further_one_begins() -> None:
    spec = cases()["recorded step"].spec
    schedule = Schedule(wait=12, warmup=2, active=10, repeat=0)  # what a case gives a recipe
    last = spec.warmup_steps + spec.num_steps
    windows = [window for window, _ in zip(schedule.windows(), range(10), strict=False)]
    whole = [window for window in windows if window.last_active < last]
    assert len(whole) == 3
    assert windows[len(whole)].first_warmup > last + 1
    assert whole[0].first_warmup > spec.warmup_steps


def result(shift_us: float = 0.0, **more: object) -> CaseResult:
    measured = Measured(
        num_steps=72,
        bare_us=200.0,
        thread_us=6.0 + shift_us,
        background_us=3.0,
        children_us=100.0,
        wall_us=20.0,
        null_us=0.0,
        measured_share=0.5,
    )
    values = {
        "measured": measured,
        "ledger": Ledger(thread_us=9.0, background_us=2.5, children_us=90.0, typical_thread_us=4.0),
        "same_weights": True,
        "window_step_us": None,
        "save_us": None,
        "window": None,
        "apart": None,
        "health": {},
        "written_bytes": 0,
        "max_rss_bytes": 0,
    }
    return CaseResult(**{**values, **more})  # type: ignore[arg-type]


def rows(**more: object) -> dict[str, RowFigures]:
    found = cases()
    measured = [
        (found["recorder"], [result(shift) for shift in (0.0, 1.0, 5.0)]),
        (found["logger tensorboard"], [result(10 + shift) for shift in (0.0, 1.0, 2.0)]),
        (found["recorded step"], [result(**more)]),
        (found["checkpoint"], [result(save_us=700.0, apart=Aside(num_steps=5, thread_us=400.0, wall_us=800.0))]),
    ]
    return {row.name: row for row in row_figures(measured)}


WINDOWS = {
    "window": Aside(num_steps=33, thread_us=50.0, wall_us=60.0),
    "apart": Aside(num_steps=3, thread_us=1000.0, wall_us=4000.0),
}


def test_figures_are_medians_with_the_values_of_each_process() -> None:
    recorder = rows(**WINDOWS)["recorder"]
    total = recorder.figures["total_us"]
    assert total.values == (109.0, 110.0, 114.0)
    assert (total.low, total.median, total.high) == (109.0, 110.0, 114.0)
    assert recorder.figures["of_step_pct"].median == 55.0
    assert recorder.own_account["thread_us"].median == 4.0
    assert recorder.over_recorder is None


def test_a_logger_is_compared_with_the_recorder() -> None:
    more = rows(**WINDOWS)["logger tensorboard"].over_recorder
    assert more is not None
    assert more.median == 10.0


def test_windows_and_checkpoints_are_for_one_of_them() -> None:
    found = rows(**WINDOWS)
    assert found["recorded step"].figures["total_us"].median == 50.0
    end = found["window end"]
    assert end.figures["children_us"].median == pytest.approx(100.0 * 72 / 3)
    assert end.figures["total_us"].median == pytest.approx(1000.0 + 2400.0)
    assert end.own_account["children_us"].median == pytest.approx(90.0 * 82 / 3)
    checkpoint = found["checkpoint"]
    assert (checkpoint.figures["wall_us"].median, checkpoint.own_account["wall_us"].median) == (800.0, 700.0)


def test_one_process_has_no_bounds_and_a_row_without_figures_is_shown_as_such() -> None:
    found = rows()
    assert found["recorded step"].figures == {}
    total = found["checkpoint"].figures["total_us"]
    assert (total.low, total.high) == (None, None)
    lines = list(table_lines(OPTIONS, PLAN, [[result()]], list(found.values())))
    assert lines[0].startswith("mine:build: a bare step takes 200 µs")
    by_name = {line.split("  ")[0]: line for line in reversed(lines)}  # the first table wins
    assert by_name["a step recorded by quick"].split()[-7:] == ["-"] * 7
    assert "400.0 [one value]" in by_name["a checkpoint"]
    assert "110.0 [109.0, 114.0]" in by_name["Trainer, recorder, JSONL, text"]
    assert "7.0 / 4.0" in "\n".join(lines)
    assert max(map(len, lines)) <= 130
