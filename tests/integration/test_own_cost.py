"""What a run says about its own cost, held against a bare loop beside it: neither may leave a part out.

Between a run with something planted in it and one without, what either way of measuring leaves out cancels: the
difference has to show in both.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest

from harness.bench.process import run_in_process
from harness.bench.spec import CaseResult, CaseSpec, Ledger

PLANTED = """
import time

from harness.bench.tiny import build as build_tiny
from harness.loggers.base import BaseLogger
from harness.loggers.fanout import LogFanout

logger_us = 0


def burn(us):
    end_ns = time.thread_time_ns() + us * 1000
    while time.thread_time_ns() < end_ns:
        pass


class Burning(BaseLogger):
    name = "burning"

    def log_metrics(self, step, metrics, *, time_ns):
        burn(logger_us)


def build(in_step: int = 0, in_logger: int = 0):
    global logger_us
    logger_us = in_logger
    commit = LogFanout.commit

    def slow_commit(fanout, step):
        burn(in_step)
        commit(fanout, step)

    LogFanout.commit = slow_commit
    return build_tiny()
"""
OUTSIDE_US = 10.0
"""What the account may lack of the tiny MLP's step on the training thread: docs/architecture.md, "Own cost"."""
NOISE_US = 15.0
"""What medians of a few processes may be off on a machine that others use; 50 is planted."""
NUM_PROCESSES = 3


class Figures(NamedTuple):
    """Both accounts of one process, µs per step."""

    measured_thread: float
    told_thread: float
    measured_background: float
    told_background: float


def figures(result: CaseResult, ledger: Ledger) -> Figures:
    measured = result.measured
    return Figures(measured.thread_us, ledger.typical_thread_us, measured.background_us, ledger.background_us)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the planted module is found by the processes that measure."""
    (tmp_path / "planted.py").write_text(PLANTED)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return tmp_path


def measure(folder: Path, spec: CaseSpec, *, in_step: int = 0, in_logger: int = 0) -> tuple[CaseResult, Ledger]:
    spec = replace(
        spec,
        workload="planted:build",
        workload_options={"in_step": str(in_step), "in_logger": str(in_logger)},
        loggers=("planted:Burning", *spec.loggers),
    )
    root = folder / f"root{len(list(folder.iterdir()))}"
    root.mkdir()
    result = run_in_process(spec, root=root)
    assert result.ledger is not None
    return result, result.ledger


def test_a_slow_logger_and_a_slow_step_are_in_both_accounts(folder: Path) -> None:
    # Hardly any warm-up: the writer is behind, and what it does for those steps would be measured with the others.
    result, ledger = measure(folder, CaseSpec(num_steps=250, warmup_steps=5), in_step=1500, in_logger=1000)
    measured = result.measured
    # Far above what is there without it. The burning itself slows the bare step down that follows it, by up to 300.
    assert measured.thread_us > 900
    assert ledger.typical_thread_us > 900
    assert measured.background_us > 900
    assert ledger.background_us == pytest.approx(measured.background_us, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", [CaseSpec(), CaseSpec(loop="session", num_scalars=10, loggers=("tensorboard",))], ids=["trainer", "session"]
)
def test_both_accounts_move_by_what_is_planted(folder: Path, spec: CaseSpec) -> None:
    plain, planted = [], []
    for _ in range(NUM_PROCESSES):
        plain.append(figures(*measure(folder, spec)))
        planted.append(figures(*measure(folder, spec, in_step=50, in_logger=50)))
    for name in Figures._fields:
        moved_us = median(getattr(one, name) for one in planted) - median(getattr(one, name) for one in plain)
        assert moved_us == pytest.approx(50, abs=NOISE_US), (name, plain, planted)
    outside_us = median(one.measured_thread - one.told_thread for one in plain)
    assert -NOISE_US < outside_us < OUTSIDE_US + NOISE_US, plain
    assert median(one.told_background / one.measured_background for one in plain) == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("save_async", "factor"), [(False, 1.2), (True, 3)])
def test_checkpoints_are_in_both_accounts(save_async: bool, factor: float, folder: Path) -> None:
    # Beside the training a save holds it for half a millisecond, the first one for longer, and any one for much longer
    # when the two threads want the interpreter: ours is the mean, the other one the median.
    spec = CaseSpec(num_steps=600, warmup_steps=12, save_interval="30ba", trainer_options={"save_async": save_async})
    result, _ = measure(folder, spec)
    assert result.apart is not None and result.save_us is not None
    assert 1 / factor < result.save_us / result.apart.wall_us < factor


@pytest.mark.slow
def test_children_are_in_both_accounts(folder: Path) -> None:
    result, ledger = measure(folder, CaseSpec(num_steps=72, warmup_steps=12, profile="quick"))
    assert result.measured.children_us > 1000
    # The account is per step of the whole run, the measurement per step that was counted.
    assert ledger.children_us * 84 == pytest.approx(result.measured.children_us * result.measured.num_steps, rel=0.02)
