"""One run, and each call it makes to the disk while it saves: killed there, or refused there.

The third of four saves is looked at, so that older checkpoints are rotated in it. What must hold each time is in
`evidence.py`: what was called saved is found, nothing damaged is at a final name, the run is resumed, and it ends with
the losses and weights of a run that nothing happened to, every bit of them.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from evidence import Evidence, complaints_about_resume, complaints_after_kill, complaints_at_end, look
from faults import ALL, CHANGES, KILL, SHORT, TORN, Fault, counted
from nursery import Ended, Nursery

DURATION = "16ba"
SAVED_STEP = 12
IN_SAVE = f"ba{SAVED_STEP}-"
NEXT_SAVE = "ba16-"
ERRNOS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE)
TrainWhole = Callable[[str], Evidence]


class Trials:
    """Runs that go wrong at one call each, one after the other."""

    def __init__(self, nursery: Nursery, folder: Path, reference: Evidence) -> None:
        self.faults: list[str] = []
        self.num_killed = 0
        self.num_failed = 0
        self._nursery = nursery
        self._folder = folder
        self._reference = reference
        self._num_roots = 0

    def calls(self, *, ops: tuple[str, ...] = CHANGES, begin: str = IN_SAVE) -> list[tuple[str, str]]:
        """The calls of a save, in a run in which none goes wrong."""
        _, root, log = self._train(Fault(root=self._folder, ops=ops, begin=begin))
        assert look(root).status == "finished"
        return counted(log)

    def killed(self, do: str, at: int, *, ops: tuple[str, ...] = CHANGES, begin: str = IN_SAVE) -> None:
        """Kill a run at that call, look, and resume it."""
        ended, root, log = self._train(Fault(root=self._folder, do=do, at=at, ops=ops, begin=begin))
        where = f"{do} at call {at} {counted(log)[-1:]}"
        if not ended.killed:
            self._note(where, [] if ended.code == 0 else [f"ended with code {ended.code}: {ended.stderr}"])
            return
        self.num_killed += 1
        self._note(where, complaints_after_kill(look(root)))
        self._resume(where, root)

    def refused(self, number: int, at: int) -> None:
        """Refuse that call with an errno, look, and resume a run that failed of it."""
        ended, root, log = self._train(Fault(root=self._folder, do=number, at=at, ops=ALL, begin=IN_SAVE))
        where = f"{errno.errorcode[number]} at call {at} {counted(log)[at - 1 : at]}"
        evidence = look(root)
        self._note(where, complaints_after_kill(evidence))
        if ended.code == 0:
            # an old checkpoint whose removal was refused has a name that the next start clears away
            evidence.temporary = [path for path in evidence.temporary if not path.endswith(".trash")]
            self._note(where, complaints_at_end(evidence, self._reference))
            return
        self.num_failed += 1
        self._note(where, _complaints_about_telling(ended, evidence, number))
        self._resume(where, root)

    def _train(self, fault: Fault) -> tuple[Ended, Path, Path]:
        self._num_roots += 1
        root, log = self._folder / f"root{self._num_roots}", self._folder / f"log{self._num_roots}"
        variables = fault.variables() | {"FAULTS_LOG": str(log)}
        return self._nursery.run("train", root, max_duration=DURATION, fault=variables), root, log

    def _resume(self, where: str, root: Path) -> None:
        before = look(root)
        ended = self._nursery.run("train", root, max_duration=DURATION, resume="auto")
        if ended.code:
            self._note(where, [f"resuming ended with code {ended.code}: {ended.stderr}"])
        after = look(root)
        self._note(where, complaints_about_resume(before, after) + complaints_at_end(after, self._reference))

    def _note(self, where: str, complaints: list[str]) -> None:
        self.faults += [f"{where}: {complaint}" for complaint in complaints]


def _complaints_about_telling(ended: Ended, evidence: Evidence, number: int) -> list[str]:
    """A run that ends because of a disk says what the disk said, without a traceback, and leaves no temporary file."""
    wrong = [f"temporary file left: {path}" for path in evidence.temporary]
    if ended.code != 3:
        wrong.append(f"ended with code {ended.code}, signal {ended.signal}: {ended.stderr}")
    if evidence.status != "failed":
        wrong.append(f"the run is {evidence.status}")
    if "error: " not in ended.stderr or os.strerror(number) not in ended.stderr or "Traceback" in ended.stderr:
        wrong.append(f"not told well: {ended.stderr}")
    return wrong


@pytest.fixture
def trials(nursery: Nursery, tmp_path: Path, train_whole: TrainWhole) -> Iterator[Trials]:
    made = Trials(nursery, tmp_path, train_whole(DURATION))
    yield made
    assert not made.faults, "\n".join(made.faults)


def of_one_save(calls: list[tuple[str, str]]) -> int:
    """How many of the calls come before the next save, and some more: threads do not always interleave alike."""
    numbers = [number for number, (_, path) in enumerate(calls, start=1) if NEXT_SAVE in path]
    return numbers[0] + 2


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_kill_before_any_call_of_a_save_loses_nothing(trials: Trials) -> None:
    calls = of_one_save(trials.calls())
    for at in range(1, calls + 1):
        trials.killed(KILL, at)
    assert trials.num_killed == calls > 25


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_kill_in_the_middle_of_any_write_of_a_save_loses_nothing(trials: Trials) -> None:
    calls = of_one_save(trials.calls(ops=("write",)))
    for at in range(1, calls + 1):
        trials.killed(TORN, at, ops=("write",))
    assert trials.num_killed == calls > 8


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_a_kill_anywhere_in_the_life_of_a_run_loses_nothing(trials: Trials) -> None:
    calls = len(trials.calls(begin=""))
    for at in range(1, calls + 1):
        trials.killed(KILL, at, begin="")
    assert trials.num_killed > 100


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", ERRNOS, ids=[errno.errorcode[number] for number in ERRNOS])
def test_a_disk_that_refuses_any_one_call_of_a_save_costs_a_run_at_most_that_save(number: int, trials: Trials) -> None:
    calls = of_one_save(trials.calls(ops=ALL))
    for at in range(1, calls + 1):
        trials.refused(number, at)
    assert trials.num_failed > 5


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from_then_on"])
def test_every_errno_at_every_call_of_a_save_is_told_and_leaves_the_checkpoints_before_it(
    sticky: bool, nursery: Nursery, tmp_path: Path
) -> None:
    ended = nursery.run("refuse", tmp_path, ERRNOS, sticky=sticky)
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["complaints"] == []
    assert found["refused"] > 10 * len(ERRNOS)


def test_an_interrupted_call_is_made_again(nursery: Nursery, tmp_path: Path) -> None:
    ended = nursery.run("refuse", tmp_path, [errno.EINTR], ops=["open", "read", "write", "sync"])
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["complaints"], found["refused"]) == ([], 0)
    assert found["saves"] > 20


def test_a_disk_that_takes_half_of_each_write_costs_nothing(
    nursery: Nursery, tmp_path: Path, train_whole: TrainWhole
) -> None:
    fault = Fault(root=tmp_path, do=SHORT, at=1, times=0, log=tmp_path / "log")
    ended = nursery.run("train", tmp_path / "runs", max_duration=DURATION, fault=fault.variables())
    assert ended.code == 0, ended.stderr
    assert len(counted(tmp_path / "log")) > 200
    assert complaints_at_end(look(tmp_path / "runs"), train_whole(DURATION)) == []
