"""A run that is killed and resumed ends bit for bit as one that never was: weights, optimizer, losses, random numbers.

Each attempt is a process of its own and dies by SIGKILL in the middle of a step. One process loads torch and forks the
attempts, so that each takes a second; it has no thread and no session of its own. One thread per process: with two,
runs that nobody killed differ too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from harness.capture.recipe import Recipe
from harness.capture.schedule import Schedule
from harness.checkpoint.checksum import ChecksumFile
from harness.checkpoint.find import load_checkpoint
from harness.checkpoint.rng import collect_rng
from harness.trainer.callback import Callback
from harness.trainer.trainer import Trainer
from harness.workloads.load import load_workload

NURSERY = """
import os, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import test_bit_equality
test_bit_equality.serve()
"""
SMALL = {
    "digits": {"batch_size": "160", "width": "4"},
    "charlm": {"n_layer": "1", "n_head": "2", "d_model": "16", "context": "32", "batch_size": "64"},
}
NUM_SAMPLES = {"digits": 1437, "charlm": 820}
"""In an epoch: 9 and 13 steps, the last one of a smaller batch."""
LOSS = "loss/train/total"
PATIENCE_S = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A training, and where it is killed."""

    workload: str = "digits"
    until: str
    save: str
    kills: tuple[int, ...]
    """The step in whose middle each attempt but the last is killed."""
    goes_on_after: tuple[int, ...]
    """The step of the checkpoint that the next attempt goes on from. It is on the disk before the kill."""
    precision: str = "fp32"
    microbatch_size: int | None = None
    workers: int = 0
    persistent: bool = False
    schedule: str | None = None
    """Where a schedule of the learning rate is stepped: `batch` or `epoch`; None keeps the workload's own, if any."""
    window: tuple[int, int] | None = None
    """How many steps the profiler waits and how many it records, again and again."""
    evaluate: bool = False


SHORT = {
    "end-of-epoch": Case(until="3ep", save="1ep", kills=(13,), goes_on_after=(9,), evaluate=True),
    "microbatches-schedule-twice": Case(
        until="3ep",
        save="4ba",
        kills=(15, 23),
        goes_on_after=(12, 20),
        microbatch_size=64,
        schedule="batch",
    ),
    "charlm-bf16": Case(
        workload="charlm", until="18ba", save="5ba", kills=(13,), goes_on_after=(10,), precision="amp_bf16"
    ),
}
LONG = {
    "first-step-after-epoch": Case(until="2ep", save="1ep", kills=(10, 10), goes_on_after=(9, 9), schedule="epoch"),
    "last-step-of-epoch": Case(until="27ba", save="1ba", kills=(9, 18, 27), goes_on_after=(8, 17, 26), evaluate=True),
    "workers": Case(until="3ep", save="4ba", kills=(7, 15), goes_on_after=(4, 12), workers=2, window=(2, 4)),
    "persistent-workers": Case(
        until="3ep", save="5ba", kills=(13, 22), goes_on_after=(10, 20), workers=2, persistent=True, schedule="batch"
    ),
    "persistent-workers-end-of-epoch": Case(
        until="3ep", save="1ep", kills=(14,), goes_on_after=(9,), workers=2, persistent=True, evaluate=True
    ),
    "window-open": Case(until="27ba", save="3ba", kills=(8, 17), goes_on_after=(6, 15), window=(3, 6)),
    "bf16-microbatches": Case(
        until="2ep", save="7ba", kills=(9, 16), goes_on_after=(7, 14), precision="amp_bf16", microbatch_size=50
    ),
    "in-samples": Case(until="4000sp", save="700sp", kills=(16,), goes_on_after=(14,), microbatch_size=160),
    "charlm-microbatches-window-twice": Case(
        workload="charlm",
        until="32ba",
        save="6ba",
        kills=(8, 21),
        goes_on_after=(6, 18),
        microbatch_size=25,
        window=(4, 4),
        evaluate=True,
    ),
    "charlm-workers": Case(
        workload="charlm", until="2ep", save="1ep", kills=(17,), goes_on_after=(13,), workers=2, precision="amp_bf16"
    ),
    "charlm-persistent-workers": Case(
        workload="charlm", until="30ba", save="4ba", kills=(7, 19), goes_on_after=(4, 16), workers=2, persistent=True
    ),
}


class Noise(Callback):
    """Gradients that depend on all three global generators: the workloads themselves draw only their order."""

    def after_backward(self, trainer: Any) -> None:
        share = 1e-3 * (random.random() + float(np.random.rand()))
        for parameter in trainer.state.model.parameters():
            parameter.grad.add_(torch.randn_like(parameter), alpha=share)


class Die(Callback):
    """Kills the process in the middle of a step, once a checkpoint is on the disk."""

    def __init__(self, step: int, saved_step: int) -> None:
        self.step = step
        self.saved_step = saved_step

    def after_backward(self, trainer: Any) -> None:
        if trainer.session.step == self.step:
            folder = trainer.session.directory.path / "checkpoints"
            deadline = time.monotonic() + PATIENCE_S
            while not list(folder.glob(f"ep*-ba{self.saved_step}-rank0.pt")):
                assert time.monotonic() < deadline, f"there is no checkpoint of step {self.saved_step}"
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)


def train(root: Path, run_name: str, case: Case, *, attempt: int, dies: bool) -> None:
    """One attempt; the third is the second that goes on."""
    torch.set_num_threads(1)
    # a resumed process has other random numbers until they are put back
    seed = 17 + attempt
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(17)
    workload = load_workload(case.workload, SMALL[case.workload])
    torch.manual_seed(seed)
    optimizer = workload.make_optimizer()
    scheduler = workload.make_scheduler(optimizer)
    if case.schedule is not None:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    made = workload.train_dataloader
    assert isinstance(made, DataLoader)
    loader = DataLoader(
        Subset(made.dataset, range(NUM_SAMPLES[case.workload])),
        batch_size=made.batch_size,
        shuffle=True,
        num_workers=case.workers,
        persistent_workers=case.persistent,
    )
    recipe = None
    if case.window is not None:
        wait, active = case.window
        recipe = Recipe(name="own", schedule=Schedule(wait=wait, warmup=1, active=active, repeat=0))
    trainer = Trainer(
        workload.model,
        loader,
        max_duration=case.until,
        loss_fn=workload.loss_fn,
        optimizers=optimizer,
        schedulers=scheduler,
        step_schedulers=case.schedule or "batch",
        eval_dataloader=workload.eval_dataloader if case.evaluate else None,
        callbacks=[Noise(), *([Die(case.kills[attempt], case.goes_on_after[attempt])] if dies else [])],
        run_name=run_name,
        root=root,
        device="cpu",
        precision=case.precision,
        microbatch_size=case.microbatch_size,
        grad_clip_norm=workload.grad_clip_norm,
        get_num_samples=workload.get_num_samples,
        get_num_tokens=workload.get_num_tokens,
        save_interval=case.save,
        profile=recipe,
        loggers=["tensorboard"],
        resume=attempt > 0,
    )
    trainer.fit()


def serve() -> None:
    """The nursery: fork an attempt for each line of stdin, and say how it ended."""
    for name, options in SMALL.items():  # all that is imported on the way is imported once, and no thread is started
        load_workload(name, options).make_optimizer().zero_grad()
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _attempt(request)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _attempt(request: Mapping[str, Any]) -> None:
    code = 1
    try:
        # workers outlive a killed attempt for some seconds, and must not hold the nursery's pipes
        said = os.open(request.pop("said"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        train(Path(request.pop("root")), case=Case(**_tuples(request.pop("case"))), **request)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


Attempt = Callable[..., None]


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", NURSERY, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "KINETO_LOG_LEVEL": "6"},
    )
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
    assert process.returncode == 0


@pytest.fixture
def attempt(nursery: subprocess.Popen[str], root: Path, tmp_path: Path) -> Attempt:
    """Makes one attempt in a process of its own: killed where the case says so, else to its end."""

    def make(run_name: str, case: Case, number: int, *, dies: bool) -> None:
        said = tmp_path / f"{run_name}-{number}.txt"
        request = {"root": str(root), "run_name": run_name, "case": dataclasses.asdict(case), "said": str(said)}
        assert nursery.stdin is not None and nursery.stdout is not None
        print(json.dumps({**request, "attempt": number, "dies": dies}), file=nursery.stdin, flush=True)
        assert int(nursery.stdout.readline()) == (-signal.SIGKILL if dies else 0), said.read_text()

    return make


def run_whole(attempt: Attempt, case: Case) -> None:
    attempt("whole", case, 0, dies=False)


def run_killed(attempt: Attempt, case: Case) -> None:
    for number in range(len(case.kills)):
        attempt("killed", case, number, dies=True)


def exact(value: Any) -> Any:
    """What two values must share to be equal bit for bit."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return {key: exact(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [exact(entry) for entry in value]
    return value


def final_state(run: Any) -> dict[str, Any]:
    """All that training has changed, from the checkpoint of the last step."""
    path = max(run.path.glob("checkpoints/ep*.pt"), key=lambda path: int(path.name.split("-ba")[1].split("-")[0]))
    content = load_checkpoint(path)
    counts = {name: value for name, value in content["timestamp"].items() if name != "total_wct_ns"}
    state: dict[str, Any] = exact({"state": content["state"], "rng": content["rng"], "counts": counts})
    return state


def metrics(run: Any) -> list[dict[str, Any]]:
    """All that was logged, in the order of the file, times left out."""
    return [exact({name: value for name, value in line.items() if name != "time"}) for line in run.lines("metrics")]


def check_equal(killed: Any, whole: Any) -> None:
    assert metrics(killed) == metrics(whole)
    assert final_state(killed) == final_state(whole)


def check_files(run: Any, case: Case) -> None:
    """No step is missing or there twice, in any file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = run.steps()
    assert steps == list(range(1, len(steps) + 1))
    assert list(run.by_step(LOSS)) == steps
    assert len(run.values(LOSS)) == len(steps)
    samples = [line["step"] for line in run.lines("system")]
    assert samples == sorted(samples) and samples[-1] <= len(steps)
    board = EventAccumulator(str(run.path), size_guidance={"scalars": 0}).Reload()
    names = {name for line in run.lines("metrics") for name in line} - {"step", "time"}
    for name in names:
        logged = {step: np.float32(value) for step, value in run.by_step(name).items()}
        assert {event.step: np.float32(event.value) for event in board.Scalars(name)} == logged
        assert len(board.Scalars(name)) == len(logged)
    attempts = run.manifest.attempts
    assert [one.status for one in attempts] == ["crashed"] * len(case.kills) + ["finished"]
    assert [one.resumed_from_step for one in attempts] == [None, *case.goes_on_after]
    assert attempts[-1].last_step == run.manifest.summary.step == len(steps)
    assert not list(run.path.rglob("*.tmp"))


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=name) for name, case in SHORT.items()),
        *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in LONG.items()),
    ],
)
def test_a_killed_and_resumed_run_is_bit_equal_to_one_that_was_not(
    case: Case, attempt: Attempt, written: Callable[..., Any]
) -> None:
    run_whole(attempt, case)
    run_killed(attempt, case)
    attempt("killed", case, len(case.kills), dies=False)
    check_equal(written("killed"), written("whole"))
    check_files(written("killed"), case)
    if case.window is not None:
        assert written("killed").traces(), "there was no window: the case has shown less than it says"


def forget_position(content: dict[str, Any]) -> None:
    content["position"]["batch_in_epoch"] = content["timestamp"]["batch_in_epoch"] = 0


def forget_rng(content: dict[str, Any]) -> None:
    content["rng"] = collect_rng()


def forget_momentum(content: dict[str, Any]) -> None:
    for moments in content["state"]["optimizer0"]["state"].values():
        moments["exp_avg"].zero_()


def forget_nothing(content: dict[str, Any]) -> None:
    pass


def test_equality_fails_when_a_part_is_not_restored(
    attempt: Attempt, written: Callable[..., Any], tmp_path: Path
) -> None:
    """The control of the test above: it can tell."""
    case = Case(until="2ep", save="4ba", kills=(6,), goes_on_after=(4,))
    run_whole(attempt, case)
    run_killed(attempt, case)
    killed, whole = written("killed"), written("whole")
    shutil.copytree(killed.path, tmp_path / "as-killed", symlinks=True)
    for forget in (forget_nothing, forget_position, forget_rng, forget_momentum):
        shutil.rmtree(killed.path)
        shutil.copytree(tmp_path / "as-killed", killed.path, symlinks=True)
        rewrite(killed.path / "checkpoints" / "ep0-ba4-rank0.pt", forget)
        attempt("killed", case, 1, dies=False)
        if forget is forget_nothing:
            check_equal(killed, whole)
            check_files(killed, case)
            continue
        assert metrics(killed)[:4] == metrics(whole)[:4]
        # the batch of the next step is another one only where the position is lost
        assert (metrics(killed)[4] != metrics(whole)[4]) is (forget is forget_position)
        assert exact(killed.values(LOSS)[6:18]) != exact(whole.values(LOSS)[6:18])
        for part in ("model", "optimizer0"):
            assert final_state(killed)["state"][part] != final_state(whole)["state"][part]
        with pytest.raises(AssertionError):
            check_equal(killed, whole)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Save a checkpoint again, changed, as the harness would have written it."""
    content = load_checkpoint(path)
    change(content)
    path.unlink()
    with ChecksumFile(path) as file:
        torch.save(content, file)  # type: ignore[arg-type]
    (path.parent / "checkpoints-rank0.json").unlink()


@pytest.mark.slow
def test_processes_that_were_not_forked_are_bit_equal_too(
    root: Path, start_script: Callable[..., Any], written: Callable[..., Any]
) -> None:
    case = SHORT["microbatches-schedule-twice"]
    program = f"""
import os, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from pathlib import Path
from test_bit_equality import SHORT, train
train(Path(sys.argv[1]), sys.argv[2], SHORT["microbatches-schedule-twice"],
      attempt=int(sys.argv[3]), dies=sys.argv[4] == "True")
"""  # noqa: PTH120
    for name, number, dies in (("whole", 0, False), ("killed", 0, True), ("killed", 1, True), ("killed", 2, False)):
        code, stderr = start_script(program, root, name, number, dies).end()
        assert code == (-signal.SIGKILL if dies else 0), stderr
    check_equal(written("killed"), written("whole"))
    check_files(written("killed"), case)
