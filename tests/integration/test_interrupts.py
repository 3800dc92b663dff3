"""Ctrl-C, SIGTERM, kill -9, dead workers and closed streams, each in a process of its own."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Callback, Trainer, session
from harness.loggers.base import BaseLogger

TRAIN = """
import sys, time
import torch
from harness import Trainer, Callback
from harness.capture.recipe import Recipe
from harness.capture.schedule import Schedule

class Says(Callback):
    def batch_end(self, trainer):
        if trainer.state.timestamp.batch == 20:
            print("twenty", flush=True)

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 4000
    def __getitem__(self, index):
        time.sleep(0.001)
        return torch.ones(4) * index, index % 3

if __name__ == "__main__":
    torch.set_num_threads(1)
    options = dict(arg.split("=") for arg in sys.argv[2:])
    loader = torch.utils.data.DataLoader(Slow(), batch_size=4, num_workers=int(options.get("workers", 0)))
    trainer = Trainer(
        torch.nn.Linear(4, 3),
        loader,
        max_duration=options.get("max_duration", "2ep"),
        loss_fn=lambda outputs, batch: torch.nn.functional.cross_entropy(outputs, batch[1]),
        run_name="foo",
        root=sys.argv[1],
        seed=1,
        callbacks=[Says()],
        profile=Recipe(name="all", schedule=Schedule(wait=9, warmup=1, active=64)),
        save_interval=options.get("save_interval", "1ep"),
        resume=options.get("resume") == "1",
        loggers=["tensorboard"],
    )
    trainer.fit()
    print("the end", flush=True)
"""

SLOW_AFTER_TWENTY_STEPS = 'index < 80 or (print("slow now", flush=True), time.sleep({seconds}))'
"""Says so first: a signal that comes between two steps would end the run before the slow one."""


def signal_of(name: str) -> signal.Signals:
    return signal.Signals[name]


def trained_until(foo: Any) -> int:
    """The last step; every file says the same."""
    steps: list[int] = foo.steps()
    assert steps == list(range(1, len(steps) + 1))
    assert list(foo.by_step("loss/train/total")) == steps
    assert foo.manifest.summary.step == foo.manifest.attempts[-1].last_step == len(steps)
    return len(steps)


@pytest.mark.parametrize(
    ("name", "workers", "returncode"),
    [
        ("SIGINT", 0, -2),
        ("SIGTERM", 2, 143),
        ("SIGUSR1", 2, 143),
        pytest.param("SIGTERM", 0, 143, marks=pytest.mark.slow),
        pytest.param("SIGINT", 2, -2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_run_cleanly(
    name: str,
    workers: int,
    returncode: int,
    start_script: Callable[..., Any],
    root: Path,
    written: Callable[..., Any],
) -> None:
    # Slow after the first steps, so that a busy machine has the time to deliver a signal before the window ends.
    text = TRAIN.replace("time.sleep(0.001)", "time.sleep(0.001 if index < 80 else 0.02)")
    script = start_script(text, root, f"workers={workers}", start_new_session=True)
    script.wait_for("twenty")
    # To the whole group, as a terminal and a scheduler do: the workers get it too.
    os.killpg(script.process.pid, signal_of(name))
    code, stderr = script.end()
    # Python ends itself by SIGINT after an uncaught KeyboardInterrupt: a shell shows 130.
    assert code == returncode, stderr
    assert f"harness: {name}: finishing the step in progress" in stderr
    foo = written()
    assert foo.status == "interrupted"
    last = trained_until(foo)
    assert 20 <= last < 60
    # torch may raise for a dead worker in the middle of a step: then there is nothing good to save.
    assert foo.checkpoints() == [f"ep0-ba{last}-rank0.pt"] or (name == "SIGTERM" and workers)
    assert foo.manifest.attempts[0].ended is not None
    (path,) = foo.traces()
    trace = json.loads(gzip.decompress(path.read_bytes()))
    recorded = [event["name"] for event in trace["traceEvents"] if event["name"].startswith("ProfilerStep")]
    # One more where the signal took the workers away while they were waited for: a step that did not come to be.
    assert recorded[: last - 10] == [f"ProfilerStep#{step}" for step in range(11, last + 1)]
    assert len(recorded) <= last - 10 + (workers > 0)
    assert name in str(trace), "the trace says why it was cut"


def test_sigterm_behind_sigusr1_is_not_a_second_one(
    start_script: Callable[..., Any], root: Path, written: Callable[..., Any]
) -> None:
    text = TRAIN.replace("time.sleep(0.001)", SLOW_AFTER_TWENTY_STEPS.format(seconds=0.3))
    script = start_script(text, root)
    script.wait_for("slow now")
    script.process.send_signal(signal.SIGUSR1)
    time.sleep(0.1)
    script.process.send_signal(signal.SIGTERM)
    code, stderr = script.end()
    assert code == 143, stderr
    assert "stopped at once" not in stderr
    foo = written()
    assert foo.status == "interrupted"
    assert foo.checkpoints() == [f"ep0-ba{trained_until(foo)}-rank0.pt"]


def test_a_step_that_hangs_is_ended_when_the_grace_period_is_over(
    start_script: Callable[..., Any], root: Path, written: Callable[..., Any]
) -> None:
    text = TRAIN.replace("time.sleep(0.001)", "len(sys.argv) > 4 or " + SLOW_AFTER_TWENTY_STEPS.format(seconds=100))
    text = text.replace('loggers=["tensorboard"],', 'loggers=["tensorboard"], grace="1s",')
    script = start_script(text, root, "save_interval=8ba", "max_duration=30ba")
    script.wait_for("slow now")
    script.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    code, stderr = script.end()
    assert code == 143, stderr
    assert 0.9 < time.monotonic() - began < 10
    assert "the grace period of 1 s is over" in stderr
    foo = written()
    assert foo.status == "interrupted"
    assert foo.manifest.attempts[0].error == "the grace period was over before everything was written"
    assert foo.checkpoints() == ["ep0-ba16-rank0.pt", "ep0-ba8-rank0.pt"]

    again = start_script(text, root, "save_interval=8ba", "max_duration=30ba", "resume=1")
    code, stderr = again.end()
    assert code == 0, stderr
    foo = written()
    assert foo.manifest.attempts[1].resumed_from_step == 16
    assert trained_until(foo) == 30


def test_sigusr1_is_left_to_whoever_uses_it(root: Path) -> None:
    def own(_number: int, _frame: object) -> None:
        pass

    earlier = signal.signal(signal.SIGUSR1, own)
    try:
        with session("foo", root=root):
            assert signal.getsignal(signal.SIGUSR1) is own
            assert signal.getsignal(signal.SIGTERM) is not earlier
        assert signal.getsignal(signal.SIGUSR1) is own
    finally:
        signal.signal(signal.SIGUSR1, earlier)


@pytest.mark.slow
def test_a_shell_shows_130_after_ctrl_c(root: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(TRAIN)
    command = f'"{sys.executable}" "{program}" "{root}" & pid=$!; read line; kill -INT $pid; wait $pid; echo "code $?"'
    # The shell ignores SIGINT in what it starts in the background, as an interactive one does not.
    wrapped = f"trap - INT; set -m; {command}"
    with subprocess.Popen(
        ["bash", "-c", wrapped], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as shell:
        assert shell.stdout is not None and shell.stdin is not None
        for line in shell.stdout:
            if line.strip() == "twenty":
                shell.stdin.write("go\n")
                shell.stdin.flush()
            if line.startswith("code"):
                break
    assert line.strip() == "code 130"


def test_a_second_ctrl_c_ends_it_at_once_and_the_files_parse(
    start_script: Callable[..., Any], root: Path, written: Callable[..., Any]
) -> None:
    text = TRAIN.replace("time.sleep(0.001)", "time.sleep(0.001 if index < 100 else 60)")
    script = start_script(text, root)
    script.wait_for("twenty")
    time.sleep(0.7)  # the step after those waits a minute for its data; the writer has had two turns
    begin = time.monotonic()
    script.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert script.process.poll() is None, "the first one lets the step finish"
    script.process.send_signal(signal.SIGINT)
    code, stderr = script.end()
    assert time.monotonic() - begin < 5
    assert code == 130
    assert "stopped at once" in stderr
    assert written().steps() == list(range(1, 26))
    assert written().status == "running", "nobody had the time to say otherwise"


def test_kill_9_loses_nothing_older_than_a_second_and_the_run_goes_on(
    start_script: Callable[..., Any], root: Path, written: Callable[..., Any]
) -> None:
    script = start_script(TRAIN, root, "save_interval=10ba")
    script.wait_for("twenty")
    time.sleep(1.2)
    killed_at = time.time()
    script.process.kill()
    script.end()
    foo = written()
    steps, metrics = foo.lines("steps"), foo.lines("metrics")
    assert foo.lines("system")
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    assert len(steps) > 20
    assert steps[-1]["time"] > killed_at - 1
    assert metrics[-1]["time"] > killed_at - 1
    assert foo.status == "running"
    assert foo.manifest.summary.step >= 20, "what ls shows is as old as the last checkpoint at most"

    again = start_script(TRAIN, root, "save_interval=10ba", "resume=1", "max_duration=400ba")
    code, stderr = again.end()
    assert code == 0, stderr
    assert foo.status == "finished"
    assert [attempt.status for attempt in foo.manifest.attempts] == ["crashed", "finished"]
    assert trained_until(foo) == 400
    resumed = foo.manifest.attempts[1].resumed_from_step
    assert resumed is not None and resumed % 10 == 0 and resumed >= 20
    assert not list((root / "foo" / ".capture").iterdir()), "what the killed attempt left was finished or removed"
    assert not list((root / "foo").rglob("*.tmp"))


@pytest.mark.slow
def test_a_live_run_is_refused_to_others_with_its_process(
    start_script: Callable[..., Any], root: Path, make_trainer: Callable[..., Any]
) -> None:
    from harness.errors import RunLockedError

    script = start_script(TRAIN, root)
    script.wait_for("twenty")
    for options in ({}, {"resume": True}, {"overwrite": True}, {"resume": "auto"}):
        with pytest.raises(RunLockedError, match=str(script.process.pid)):
            make_trainer(**options)
    script.process.send_signal(signal.SIGINT)
    assert script.end()[0] == -2


WORKER_DIES = TRAIN.replace(
    "time.sleep(0.001)", "import os; os.getppid() == os.getpgid(0) and index == 50 and os.kill(os.getpid(), 9)"
)


def test_a_killed_worker_names_the_step_and_the_last_good_one_is_saved(
    start_script: Callable[..., Any], root: Path, written: Callable[..., Any]
) -> None:
    script = start_script(WORKER_DIES, root, "workers=2", start_new_session=True)
    code, stderr = script.end()
    assert code == 1
    assert "DataLoader worker" in stderr
    assert "while the dataloader loaded the batch of step" in stderr
    foo = written()
    assert foo.status == "failed"
    last = trained_until(foo)
    assert 1 <= last <= 13
    assert f"step {last + 1}" in (foo.manifest.attempts[0].error or "")
    assert foo.checkpoints() == [f"ep0-ba{last}-rank0.pt"]


def test_a_worker_that_dies_in_the_middle_of_a_step_lets_the_step_end(
    make_trainer: Callable[..., Any], written: Callable[..., Any]
) -> None:
    def as_torch_does_for_a_dead_worker(_number: int, _frame: object) -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    ended: list[int] = []

    class ChildDiesInStepThree(Callback):
        def fit_start(self, trainer: Trainer) -> None:
            signal.signal(signal.SIGCHLD, as_torch_does_for_a_dead_worker)

        def after_backward(self, trainer: Trainer) -> None:
            if trainer.state.timestamp.batch == 2:
                subprocess.run([sys.executable, "-c", "pass"], check=True)

        def batch_end(self, trainer: Trainer) -> None:
            ended.append(trainer.state.timestamp.batch)

    earlier = signal.getsignal(signal.SIGCHLD)
    try:
        trainer = make_trainer(callbacks=[ChildDiesInStepThree()], save_interval="1000ba", max_duration="5ba")
        with pytest.raises(RuntimeError, match="is killed by signal") as caught:
            trainer.fit()
        assert signal.getsignal(signal.SIGCHLD) is as_torch_does_for_a_dead_worker
    finally:
        signal.signal(signal.SIGCHLD, earlier)
    assert "batch of step 4" in "".join(caught.value.__notes__)
    assert ended == [1, 2, 3]
    assert written().status == "failed"
    assert written().checkpoints() == ["ep0-ba3-rank0.pt"]


def test_a_child_that_ends_while_the_run_is_closed_does_not_interrupt_the_closing(
    make_trainer: Callable[..., Any], written: Callable[..., Any]
) -> None:
    class EndsAChild(BaseLogger):
        name = "ends-a-child"

        def close(self) -> None:
            subprocess.run([sys.executable, "-c", "pass"], check=True)

    def as_torch_does_for_a_dead_worker(_number: int, _frame: object) -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    class InstallsTheHandler(Callback):
        def fit_end(self, trainer: Trainer) -> None:
            signal.signal(signal.SIGCHLD, as_torch_does_for_a_dead_worker)

    earlier = signal.getsignal(signal.SIGCHLD)
    try:
        make_trainer(
            loggers=[EndsAChild()], callbacks=[InstallsTheHandler()], save_interval="1000ba", max_duration="5ba"
        ).fit()
        assert signal.getsignal(signal.SIGCHLD) is as_torch_does_for_a_dead_worker
    finally:
        signal.signal(signal.SIGCHLD, earlier)
    assert written().status == "finished"
    assert written().checkpoints() == ["ep0-ba5-rank0.pt"]


@pytest.mark.slow
def test_workers_hold_no_lock_and_end_with_the_run(
    start_script: Callable[..., Any], root: Path, written: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    import psutil

    from harness.run.lock import is_locked

    script = start_script(TRAIN, root, "workers=2")
    script.wait_for("twenty")
    workers = psutil.Process(script.process.pid).children()
    assert len(workers) >= 2
    for worker in workers:
        worker.suspend()
    script.process.kill()
    script.process.wait()
    assert not is_locked(root / "foo" / ".lock"), "a worker that outlives the trainer does not own the run"
    for worker in workers:
        worker.resume()
    wait_until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))


@pytest.mark.parametrize(
    "how",
    [
        "closed before",
        pytest.param("closed meanwhile", marks=pytest.mark.slow),
        pytest.param("pipe without a reader", marks=pytest.mark.slow),
    ],
)
def test_closed_streams_end_nothing(
    how: str, start_script: Callable[..., Any], root: Path, tmp_path: Path, written: Callable[..., Any]
) -> None:
    text = TRAIN.replace('print("the end", flush=True)', f'open({str(tmp_path / "end")!r}, "w").close()')
    text = text.replace('print("twenty", flush=True)', "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    text = text.replace('loggers=["tensorboard"]', 'loggers=["tensorboard", "progress"]')
    if how == "closed meanwhile":
        text = text.replace("trainer.fit()", "import os; os.close(1); os.close(2); trainer.fit()")
    if how == "closed before":
        program = tmp_path / "program.py"
        program.write_text(text)
        code = subprocess.run(
            ["bash", "-c", f'"{sys.executable}" "{program}" "{root}" >&- 2>&-'], check=False
        ).returncode
    else:
        script = start_script(text, root)
        if how == "pipe without a reader":
            script.process.stdout.close()
            script.process.stderr.close()
        code = script.process.wait(60)
    assert code == 143
    foo = written()
    assert foo.status == "interrupted"
    assert trained_until(foo) == 20
    for path in foo.path.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".txt", ".toml"):
            assert b"finishing the step" not in path.read_bytes(), "a stream's number was taken for stderr"


FULL = """
import sys
import torch
from harness import session

with session("foo", root=sys.argv[1], loggers=["tensorboard"]) as run:
    filler = open(sys.argv[1] + "/filler", "wb", buffering=0)
    import time, os
    for batch in run.steps([torch.ones(2)] * 900, "1ep"):
        run.log({"number": run.step, "text": 0.5})
        if run.step == 300:
            time.sleep(0.6)
            try:
                while True:
                    filler.write(b"x" * 4096)
            except OSError:
                print("full", flush=True)
        if run.step == 600:
            time.sleep(0.6)
            os.truncate(filler.name, 0)
            time.sleep(0.6)
print("the end", flush=True)
"""


def test_a_disk_that_is_full_for_a_while_costs_no_line(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    mount, program, copy = tmp_path / "mount", tmp_path / "program.py", tmp_path / "copy"
    mount.mkdir()
    program.write_text(FULL)
    script = (
        f"mount -t tmpfs -o size=2m none {mount} && {sys.executable} {program} {mount}; code=$?;"
        f" cp -r {mount}/foo {copy}; exit $code"
    )
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["full", "the end"]
    steps = [json.loads(line)["step"] for line in (copy / "steps-rank0.jsonl").read_text().splitlines()]
    metrics = [json.loads(line)["number"] for line in (copy / "metrics-rank0.jsonl").read_text().splitlines()]
    assert steps == metrics == list(range(1, 901))
    manifest = json.loads((copy / "run.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["health"]["steps_file"]["errors"] > 0, "the disk was full indeed"
    assert manifest["health"]["steps_file"]["dropped_lines"] == 0
