"""What a step costs more with the harness than in the bare loop.

The tiny MLP exposes microseconds; the step of `charlm` shows what they are worth in percent.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cases import record_case
from operators import LOOPS, added_operators
from recorded import clock, record

from harness.bench.spec import IDLE, CaseSpec

CASES = {
    "null": CaseSpec(loop="bare"),
    "session": CaseSpec(loop="session"),
    "session-idle-recipe": CaseSpec(loop="session", profile=IDLE),
    "trainer": CaseSpec(),
    "trainer-quiet": CaseSpec(log_interval="1000000000ba"),
    "trainer-idle-recipe": CaseSpec(profile=IDLE),
    "trainer-callbacks": CaseSpec(callback="harness.bench.tiny:EveryEvent"),
    "trainer-tensorboard": CaseSpec(loggers=("tensorboard",)),
}
RECIPES = ("quick", "steady", "memory", "stacks")
CHARLM_CASES = {
    "null": CaseSpec(workload="charlm", loop="bare"),
    "everything": CaseSpec(workload="charlm", loggers=("tensorboard", "progress"), profile=IDLE),
}
TINY_STEPS_PER_CHARLM_STEP = 40
"""A step of charlm takes 400 times as long as one of the tiny MLP; a tenth of the steps' time is enough."""


@pytest.mark.benchmark(group="step", timer=clock)
@pytest.mark.parametrize("case", CASES)
def test_added_to_a_step(benchmark: Any, tmp_path: Path, processes: int, steps: int, case: str) -> None:
    record_case(benchmark, replace(CASES[case], num_steps=steps), processes=processes, folder=tmp_path)


@pytest.mark.benchmark(group="window", timer=clock)
@pytest.mark.parametrize("recipe", RECIPES)
def test_added_inside_a_window(benchmark: Any, tmp_path: Path, processes: int, steps: int, recipe: str) -> None:
    spec = CaseSpec(profile=recipe, num_steps=max(steps // 20, 50), warmup_steps=50)
    record_case(benchmark, spec, processes=min(processes, 3), folder=tmp_path, value="window_added_us")


@pytest.mark.benchmark(group="charlm", timer=clock)
@pytest.mark.parametrize("case", CHARLM_CASES)
def test_charlm_step(benchmark: Any, tmp_path: Path, processes: int, steps: int, case: str) -> None:
    num_steps = max(steps // TINY_STEPS_PER_CHARLM_STEP, 10)
    spec = replace(CHARLM_CASES[case], num_steps=num_steps, warmup_steps=5)
    record_case(benchmark, spec, processes=processes, folder=tmp_path)


@pytest.mark.benchmark(group="operators", timer=clock)
@pytest.mark.parametrize("loop", LOOPS)
def test_operators_of_a_step(benchmark: Any, tmp_path: Path, loop: str) -> None:
    record(benchmark, lambda: {"added_operators": added_operators(loop, tmp_path)}, value="added_operators", rounds=1)
