"""What it costs to log a number of scalars in each step, to each logger. JSONL and text are always on.

Figures are those of a step: on the training thread, over the process's other threads, in child processes that have
ended, and bytes written. A client's process counts with its whole life, start included, spread over the steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cases import record_case
from recorded import clock

from harness.bench.spec import CaseSpec

LOGGERS = {
    "none": (),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "comet": ("comet",),
    "all": ("tensorboard", "wandb", "comet"),
}
CLIENTS = {"wandb", "comet"}
FEWER_STEPS_WITH_CLIENTS = {0: 2, 1: 2, 10: 4, 100: 40}
"""By the number of scalars. Comet queues a message for each, and must be done with them ten seconds after the end."""
MOST_PROCESSES = 3
"""Of the cases that no budget is held against."""
BUDGETED = {(1, "tensorboard"), (10, "tensorboard")}
A_MILLION = 1_000_000

pytestmark = pytest.mark.benchmark(group="logging", timer=clock)


@pytest.fixture(autouse=True)
def clients_are_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing leaves the machine, and the clients keep out of the user's home."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("COMET_START_ONLINE", "0")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("loggers", LOGGERS)
@pytest.mark.parametrize("num_scalars", [0, 1, 10, 100])
def test_scalars(benchmark: Any, tmp_path: Path, processes: int, steps: int, num_scalars: int, loggers: str) -> None:
    names = LOGGERS[loggers]
    spec = CaseSpec(
        loop="session",
        num_scalars=num_scalars,
        loggers=names,
        num_steps=max(steps // (FEWER_STEPS_WITH_CLIENTS[num_scalars] if CLIENTS & set(names) else 1), 50),
        warmup_steps=50 if CLIENTS & set(names) else 300,
    )
    if (num_scalars, loggers) not in BUDGETED:
        processes = min(processes, MOST_PROCESSES)
    record_case(benchmark, spec, processes=processes, folder=tmp_path)


@pytest.mark.parametrize("loggers", ["none", "tensorboard"])
@pytest.mark.parametrize("num_scalars", [1, 10])
def test_tensors(benchmark: Any, tmp_path: Path, processes: int, steps: int, num_scalars: int, loggers: str) -> None:
    """Tensors of one element, such as a loss, instead of floats."""
    spec = CaseSpec(loop="session", num_scalars=num_scalars, tensors=True, loggers=LOGGERS[loggers], num_steps=steps)
    record_case(benchmark, spec, processes=min(processes, MOST_PROCESSES), folder=tmp_path)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num_steps", [1_000, 10_000, 100_000, A_MILLION])
def test_number_of_steps(benchmark: Any, request: pytest.FixtureRequest, tmp_path: Path, num_steps: int) -> None:
    """Whether a long run costs more a step than a short one: a scalar each step to JSONL, text and TensorBoard.

    `max_rss_bytes` holds the readings of the measurement itself too, some hundreds of bytes a step.
    """
    if num_steps == A_MILLION and not request.config.getoption("--million-steps"):
        pytest.skip("a million steps take ten minutes: give --million-steps")
    spec = CaseSpec(loop="session", num_scalars=1, loggers=("tensorboard",), num_steps=num_steps)
    record_case(benchmark, spec, processes=MOST_PROCESSES if num_steps <= 10_000 else 1, folder=tmp_path)
