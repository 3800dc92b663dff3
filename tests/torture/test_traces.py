"""Traces, killed or refused at any call while torch exports them and while the child process finishes them.

Training must not notice, no half trace may have a finished one's name, and nothing may be left for good.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from evidence import Evidence, complaints_after_kill, complaints_at_end, look
from faults import KILL, Fault, counted
from nursery import Nursery

DURATION, LONGER = "8ba", "16ba"
FINISHING = "harness.capture.finish"
RECIPE = "[schedule]\nskip_first = 2\nwait = 0\nwarmup = 1\nactive = 1\nrepeat = 1\n"
"""Step 4 is recorded, and exported at its end."""
TRACE = "rank0.000004.pt.trace.json.gz"
TrainWhole = Callable[[str], Evidence]


class Traced:
    """Runs with one trace."""

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self.faults: list[str] = []
        self.num_lost = 0
        """Attempts that ended without the trace."""
        self.num_salvaged = 0
        """Those of them whose trace the next attempt finished."""
        self.folder = folder
        self._nursery = nursery
        self._recipe = folder / "recipe.toml"
        self._recipe.write_text(RECIPE)
        self._num_roots = 0

    def train(self, root: Path, **options: object) -> tuple[int | None, str]:
        """Exit code (None for a kill) and stderr."""
        ended = self._nursery.run("train", root, resume="auto", profile=str(self._recipe), **options)
        return ended.code, ended.stderr

    def new_root(self) -> tuple[Path, Path]:
        """A folder for runs and one for the shim's log."""
        self._num_roots += 1
        return self.folder / f"root{self._num_roots}", self.folder / f"log{self._num_roots}"

    def try_child(self, do: str | int, at: int, reference: Evidence) -> bool:
        """Let the finishing child go wrong at a call, then go on with the run; whether the call was reached."""
        root, log = self.new_root()
        fault = Fault(root=root, do=do, at=at, program=FINISHING, log=log)
        code, stderr = self.train(root, max_duration=DURATION, fault_of_children=fault.variables())
        where = f"child: {do} at {at} {counted(log)[at - 1 : at]}"
        if code != 0:
            self.faults.append(f"{where}: ended with {code}: {stderr}")
        return self._go_on(where, root, log, at, reference)

    def try_parent(self, do: str | int, at: int, reference: Evidence) -> bool:
        """Let the training process go wrong at a call for raw traces, then go on with the run."""
        root, log = self.new_root()
        fault = Fault(root=root, do=do, at=at, match="/.capture", log=log)
        code, stderr = self.train(root, max_duration=DURATION, fault=fault.variables())
        where = f"parent: {do} at {at} {counted(log)[at - 1 : at]}"
        # without its private folder a run does not begin; later it does not end because of a trace
        fine = (None, 0) if do == KILL else (0, 3) if at == 1 else (0,)
        if code not in fine or "Traceback" in stderr:
            self.faults.append(f"{where}: ended with {code}: {stderr}")
        return self._go_on(where, root, log, at, reference)

    def _go_on(self, where: str, root: Path, log: Path, at: int, reference: Evidence) -> bool:
        between = look(root)
        self.num_lost += between.traces == []
        code, stderr = self.train(root, max_duration=LONGER)
        after = look(root)
        wrong = complaints_after_kill(between) + complaints_at_end(after, reference)
        if code != 0:
            wrong.append(f"going on ended with {code}: {stderr}")
        wrong += [f"left behind: {path.relative_to(root)}" for path in (root / "foo" / ".capture").rglob("*")]
        if after.traces not in ([], [TRACE]):
            wrong.append(f"traces: {after.traces}")
        self.num_salvaged += between.traces == [] and after.traces == [TRACE]
        self.faults += [f"{where}: {one}" for one in wrong]
        return len(counted(log)) >= at


@pytest.fixture
def traced(nursery: Nursery, tmp_path: Path) -> Traced:
    return Traced(nursery, tmp_path)


def every(reached: Callable[[int], bool]) -> int:
    """Try call after call until one is not reached; how many were."""
    at = 1
    while reached(at):
        at += 1
    return at - 1


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.parametrize("do", [KILL, errno.ENOSPC], ids=["kill", "ENOSPC"])
def test_a_child_that_cannot_finish_a_trace_costs_at_most_the_trace(
    do: str | int, traced: Traced, train_whole: TrainWhole
) -> None:
    calls = every(lambda at: traced.try_child(do, at, train_whole(LONGER)))
    assert not traced.faults, "\n".join(traced.faults)
    assert calls > 5
    assert traced.num_salvaged == traced.num_lost > 3


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.parametrize("do", [KILL, errno.ENOSPC], ids=["kill", "ENOSPC"])
def test_an_export_that_is_killed_or_refused_costs_at_most_the_trace(
    do: str | int, traced: Traced, train_whole: TrainWhole
) -> None:
    calls = every(lambda at: traced.try_parent(do, at, train_whole(LONGER)))
    assert not traced.faults, "\n".join(traced.faults)
    assert calls > 5
    assert traced.num_lost > 3
