"""`harness bench` as a user runs it, on a module of the user's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

TIMEOUT_S = 200
WORKLOAD = """
import time

import torch

from harness import Workload
from harness.loggers import BaseLogger


class Own(BaseLogger):
    name = "own"


class Failing(BaseLogger):
    name = "failing"

    def log_metrics(self, step, metrics, *, time_ns):
        raise ValueError("no service")


def build(how: str = "fine", wait_s: float = 0.0):
    if how == "build":
        raise RuntimeError("no data here")

    class Loader:
        def __iter__(self):
            for number in range(8):
                if how == "loader" and number == 3:
                    raise OSError("of the user")
                yield torch.rand(8, 4)

    def loss(outputs, batch):
        time.sleep(wait_s)
        if how == "loss":
            raise EOFError("of the user")
        return outputs if how == "shape" else outputs.pow(2).mean()

    model = torch.nn.Linear(4, 2)
    if how == "copy":
        model.twice = model.weight * 2
    return Workload(
        model=model,
        train_dataloader=Loader(),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        loss_fn=loss,
    )
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(WORKLOAD)
    return tmp_path


def start(project: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness", "bench", *arguments]
    return subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def bench(project: Path, *arguments: str) -> tuple[int, str, str]:
    with start(project, *arguments) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, err


def left_behind(project: Path) -> list[str]:
    return sorted(path.name for path in project.iterdir() if path.name not in ("mine.py", "__pycache__"))


def by_name(document: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in document["rows"]}


SHORT = ("--processes", "1", "--steps", "20", "--profile", "off")


def test_a_module_of_ones_own_is_measured_and_nothing_is_left(project: Path) -> None:
    code, out, err = bench(project, "mine:build", *SHORT, "--logger", "none", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["format"], document["workload"]) == (1, "mine:build")
    assert document["options"]["steps"] == 20
    assert document["versions"]["torch"]
    rows = by_name(document)
    assert list(rows) == ["null", "recorder", "checkpoint", "everything"]
    for row in rows.values():
        assert len(row["figures"]["total_us"]["values"]) == 1
        assert row["figures"]["total_us"]["low"] is None
    assert document["bare_step_us"]["median"] > 10
    assert rows["null"]["own_account"] == {}
    assert rows["recorder"]["own_account"]["thread_us"]["median"] > 0
    assert rows["checkpoint"]["per"] == "checkpoint"
    assert rows["checkpoint"]["figures"]["wall_us"]["median"] > 100
    assert "about" in err.splitlines()[1]
    assert left_behind(project) == []


@pytest.mark.slow
def test_all_rows_as_a_table_and_a_logger_that_fails_is_told(project: Path) -> None:
    (project / "runs").mkdir()
    options = ("--processes", "2", "--steps", "50", "--logger", "tensorboard", "--logger", "mine:Failing")
    code, out, err = bench(project, "mine:build", *options)
    assert code == 0, err
    names = [line.split("  ")[0] for line in out.splitlines()]
    for name in ("null", "+ tensorboard", "+ mine:Failing", "a step recorded by quick", "the end of its window"):
        assert name in names
    assert "warning: logger mine:Failing: " in err
    assert "no service" in err
    assert "warning: recorded step" not in err
    assert left_behind(project) == ["runs"]
    assert list((project / "runs").iterdir()) == []


@pytest.mark.slow
def test_a_session_with_a_logger_of_ones_own(project: Path) -> None:
    code, out, err = bench(project, "mine:build", *SHORT, "--logger", "mine:Own", "--loop", "session", "--json")
    assert code == 0, err
    assert "logger mine:Own" in by_name(json.loads(out))


EARLY = {
    "recipe": (("mine:build", "--profile", "quikc"), "did you mean 'quick'?"),
    "jsonl": (("mine:build", "--logger", "jsonl"), "--logger jsonl: every run has it"),
    "none-and-more": (("mine:build", "--logger", "none", "--logger", "tensorboard"), "--logger none together"),
    "steps": (("mine:build", "--steps", "1"), "'--steps': 1 is not in the range"),
    "assignment": (("mine:build", "-o", "lr"), "'lr' is not of the form key=value"),
}


@pytest.mark.parametrize("arguments", EARLY.values(), ids=EARLY)
def test_plain_slips_are_refused_before_anything_is_tried(project: Path, arguments: Any) -> None:
    typed, text = arguments
    code, out, err = bench(project, *typed)
    assert (code, out) == (2, "")
    assert text in err
    assert "trying" not in err
    assert left_behind(project) == []


WRONG = {
    "build": (2, ("mine:build", "-o", "how=build"), "build() raised RuntimeError: no data here"),
    "no-such-function": (2, ("mine:biuld",), "did you mean 'build'?"),
    "option": (2, ("mine:build", "-o", "hwo=1"), "did you mean 'how'?"),
    "logger": (2, ("mine:build", "--logger", "tensorbord"), "did you mean tensorboard?"),
    "loader": (3, ("mine:build", "-o", "how=loader"), "while the dataloader loaded the batch of step 4"),
    "shape": (3, ("mine:build", "-o", "how=shape"), "the loss has shape (8, 2), expected a scalar"),
    "loss": (3, ("mine:build", "-o", "how=loss"), "EOFError: of the user"),
    "copy": (2, ("mine:build", "-o", "how=copy"), "copy.deepcopy(model) raised RuntimeError"),
}


@pytest.mark.parametrize(
    "wrong",
    [pytest.param(one, marks=() if name in ("option", "loader") else pytest.mark.slow) for name, one in WRONG.items()],
    ids=list(WRONG),
)
def test_what_cannot_be_trained_is_told_as_train_tells_it_by_the_first_process(project: Path, wrong: Any) -> None:
    expected, arguments, text = wrong
    code, out, err = bench(project, *arguments)
    assert (code, out) == (expected, "")
    assert text in err
    assert "process 1 of" not in err
    assert "bug of the harness" not in err
    assert left_behind(project) == []


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
    ids=["ctrl-c", "sigterm"],
)
def test_a_signal_ends_the_processes_and_removes_the_files(project: Path, number: signal.Signals, code: int) -> None:
    with start(project, "mine:build", "-o", "wait_s=0.01", "--steps", "4000") as process:
        assert process.stderr is not None
        said = [process.stderr.readline()]
        while not said[-1].startswith("process 1 of"):
            assert said[-1], said
            said.append(process.stderr.readline())
        time.sleep(2)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        os.kill(process.pid, number)
        process.communicate(timeout=30)
    assert process.returncode == code
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert left_behind(project) == []
