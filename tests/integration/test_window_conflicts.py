"""A capture beside a torch profiler of the user's own.

Each case runs in a process of its own, forked from one that has torch imported: torch 2.13 answers a conflict that
nobody prevents with a segmentation fault.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow

_PROGRAM = """
import json, os, sys, threading, traceback
from pathlib import Path
import torch
from torch.profiler import ProfilerActivity, profile, schedule
from harness.capture.recipe import Recipe
from harness.capture.schedule import Schedule
from harness.capture.window import Capture

def mine(**kwargs):
    return profile(activities=[ProfilerActivity.CPU], **kwargs)

def events_of(theirs):
    theirs.export_chrome_trace(str(folder / "theirs.json"))
    return len(json.loads((folder / "theirs.json").read_text())["traceEvents"])

def train(first, last):
    for step in range(first, last + 1):
        (torch.ones(4) * 2).sum()
        if step >= capture.next_boundary:
            capture.on_step_end(step)

def run(case):
    exec(case, globals())
    capture.cut("end")
    capture.wait()
    traces = sorted(int(path.name.split(".")[1]) for path in folder.glob("*.gz"))
    result = {"health": capture.health(), "theirs": theirs_events, "traces": traces}
    (folder / "outcome.json").write_text(json.dumps(result))

recipe = Recipe(name="two", schedule=Schedule(skip_first=2, warmup=2, active=2, repeat=2))  # 3-6 and 7-10
pids = {}
for name, case in json.load(sys.stdin).items():
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    theirs_events = None
    capture = Capture(
        recipe, run_name="foo", rank=0, world_size=1, private_dir=folder / ".capture",
        trace_path=lambda step: folder / f"rank0.{step:06d}.pt.trace.json.gz",
        system_samples=lambda begin, end: [], device_type="cpu", on_window=lambda opened: None,
    )
    capture.start(1)
    pid = os.fork()
    if pid == 0:
        try:
            run(case)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    pids[name] = pid
statuses = {name: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for name, pid in pids.items()}
print(json.dumps(statuses))
"""

_SKIPPED = {
    "recording": """
theirs = mine()
theirs.start()
train(1, 4)
theirs.stop()
theirs_events = events_of(theirs)
train(5, 12)
""",
    "warming_up": """
theirs = mine(schedule=schedule(wait=0, warmup=4, active=1, repeat=1))
with theirs:
    for step in range(1, 6):
        train(step, step)
        theirs.step()
theirs_events = events_of(theirs)
train(6, 12)
""",
    "waiting": """
theirs = mine(schedule=schedule(wait=4, warmup=0, active=1, repeat=1))
with theirs:
    for step in range(1, 6):
        train(step, step)
        theirs.step()
theirs_events = events_of(theirs)
train(6, 12)
""",
    "other_thread": """
started, end = threading.Event(), threading.Event()
def use():
    with mine():
        started.set()
        end.wait()
thread = threading.Thread(target=use)
thread.start()
started.wait()
train(1, 4)
end.set()
thread.join()
theirs_events = 1
train(5, 12)
""",
}
_TAKEN_OVER = {
    "in_our_warmup": """
train(1, 2)
with mine() as theirs:
    train(3, 3)
theirs_events = events_of(theirs)
train(4, 12)
""",
    "inside_one_step_of_our_warmup": """
train(1, 2)
with mine() as theirs:
    torch.ones(3) * 3
theirs_events = events_of(theirs)
train(3, 12)
""",
    "warming_up_in_our_warmup": """
train(1, 2)
with mine(schedule=schedule(wait=0, warmup=1, active=1, repeat=1)) as theirs:
    train(3, 3)
    theirs.step()
    torch.ones(3) * 3
theirs_events = events_of(theirs)
train(4, 12)
""",
    "in_our_recording": """
train(1, 4)
with mine() as theirs:
    train(5, 5)
theirs_events = events_of(theirs)
train(6, 12)
""",
    "inside_one_recorded_step": """
train(1, 4)
with mine() as theirs:
    torch.ones(3) * 3
theirs_events = events_of(theirs)
train(5, 12)
""",
    "started_by_hand_in_our_recording": """
train(1, 4)
theirs = mine()
theirs.start()
train(5, 5)
theirs.stop()
theirs_events = events_of(theirs)
train(6, 12)
""",
}
_OTHER = {
    "finished_before": """
theirs = mine()
theirs.start()
torch.ones(3) * 3
theirs.stop()
theirs_events = events_of(theirs)
train(1, 12)
""",
    "no_space": """
import resource
train(1, 4)
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
train(5, 6)
assert list((folder / ".capture").iterdir()) == []
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
train(7, 12)
""",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By case: what became of our windows and of the user's trace, or the exit status that is not 0."""
    folder = tmp_path_factory.mktemp("conflicts")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder)],
        input=json.dumps({**_SKIPPED, **_TAKEN_OVER, **_OTHER}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sys.stderr.write(done.stderr)
    return {
        name: json.loads((folder / name / "outcome.json").read_text()) if status == 0 else status
        for name, status in json.loads(done.stdout).items()
    }


@pytest.mark.parametrize("case", _SKIPPED)
def test_a_window_is_skipped_while_the_user_has_a_profiler_and_the_next_one_is_written(
    outcomes: dict[str, Any], case: str
) -> None:
    result = outcomes[case]
    assert result["theirs"] > 0
    assert (result["health"]["windows_skipped"], result["health"]["windows_failed"]) == (1, 0)
    assert "steps 5 to 6 are not captured: another torch" in result["health"]["errors"][0]
    assert result["traces"] == [9]


@pytest.mark.parametrize("case", _TAKEN_OVER)
def test_a_window_that_the_user_takes_over_is_given_up_and_training_goes_on(
    outcomes: dict[str, Any], case: str
) -> None:
    result = outcomes[case]
    assert result["theirs"] > 0
    assert result["health"]["windows_failed"] == 1
    assert "another torch profiler was used inside the capture window" in result["health"]["errors"][0]
    assert result["traces"] == [9]


def test_a_profiler_of_the_user_that_has_finished_is_in_nobodys_way(outcomes: dict[str, Any]) -> None:
    result = outcomes["finished_before"]
    assert result["traces"] == [5, 9]
    assert result["health"]["errors"] == []


def test_an_export_that_torch_fails_silently_is_told_and_leaves_nothing(outcomes: dict[str, Any]) -> None:
    result = outcomes["no_space"]
    assert result["health"]["windows_failed"] == 1
    assert "CaptureError: torch.profiler wrote no trace" in result["health"]["errors"][0]
    assert result["traces"] == [9]
