"""What is done in a process that is to be killed, or whose disk is to refuse.

Runs in a child that the nursery forked: a task is a function of this module, its exit code what it returns.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from evidence import look
from faults import arm
from refusals import refuse_saves
from workload import LOSS, build

from harness.cli.errors import FailedRunError, tell
from harness.errors import HarnessError
from harness.trainer.callback import Callback
from harness.trainer.setup import seed_everything
from harness.trainer.trainer import Trainer


class FillDisk(Callback):
    """Takes what a disk has left after one step, `spare_bytes` apart, and gives all back after another.

    Waits `pause_s` before each of the two, so that the threads have written what they have, or met the full disk.
    """

    def __init__(
        self, folder: Path, *, full_after: int, free_after: int | None, pause_s: float = 0.0, spare_bytes: int = 0
    ) -> None:
        self.filler = folder / "filler"
        self._full_after = full_after
        self._free_after = free_after
        self._pause_s = pause_s
        self._spare_bytes = spare_bytes

    def batch_end(self, trainer: Trainer) -> None:
        """Called after each step."""
        step = trainer.state.timestamp.batch
        if step == self._full_after:
            time.sleep(self._pause_s)
            fill(self.filler, self._spare_bytes)
        if step == self._free_after:
            time.sleep(self._pause_s)
            self.filler.unlink()


def fill(filler: Path, spare_bytes: int = 0) -> None:
    """Write until the disk takes nothing more, then give some bytes back."""
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 512):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
        file.truncate(file.tell() - spare_bytes)


class Limit(Callback):
    """Sets one of the process's limits after a step, to what it uses then and some more."""

    def __init__(self, name: str, *, after: int, more: int) -> None:
        self._limit = getattr(resource, name)
        self._after = after
        self._more = more

    def batch_end(self, trainer: Trainer) -> None:
        """Called after each step."""
        if trainer.state.timestamp.batch != self._after:
            return
        time.sleep(0.3)  # let a save that is under way end
        open_files = sum(1 for _ in Path("/proc/self/fd").iterdir())
        used = open_files if self._limit == resource.RLIMIT_NOFILE else 0
        _, hard = resource.getrlimit(self._limit)
        resource.setrlimit(self._limit, (used + self._more, hard))


class UseUpMemory(Callback):
    """Moves the process into a control group and takes more memory than that has, after a step."""

    def __init__(self, group: str, *, after: int) -> None:
        self._group = Path(group)
        self._after = after

    def batch_end(self, trainer: Trainer) -> None:
        """Called after each step."""
        if trainer.state.timestamp.batch == self._after:
            (self._group / "cgroup.procs").write_text(str(os.getpid()))
            self._taken = b"x" * (1 << 30)


def train(
    root: str,
    *,
    max_duration: str = "24ba",
    save_interval: str | None = "4ba",
    fault: dict[str, str] | None = None,
    fault_of_children: dict[str, str] | None = None,
    fill_disk: dict[str, Any] | None = None,
    limit: dict[str, Any] | None = None,
    use_up_memory: dict[str, Any] | None = None,
    hidden: int = 512,
    **options: Any,
) -> int:
    """Train the run `foo` as `harness train` does, with two checkpoints kept; exit codes are the command's.

    Args:
        root: The folder that holds the runs.
        max_duration: Of the run.
        save_interval: Of its checkpoints.
        fault: For the shim, from `Fault.variables`.
        fault_of_children: For that of the programs it starts; `program` says of which.
        fill_disk: Arguments of FillDisk.
        limit: Arguments of Limit.
        use_up_memory: Arguments of UseUpMemory.
        hidden: Width of the model.
        **options: For the Trainer.
    """
    callbacks: list[Callback] = []
    if fill_disk is not None:
        callbacks.append(FillDisk(Path(root), **fill_disk))
    if limit is not None:
        callbacks.append(Limit(**limit))
    if use_up_memory is not None:
        callbacks.append(UseUpMemory(**use_up_memory))
    os.environ.update(fault_of_children or {})
    if fault is not None:
        arm(fault)
    try:
        seed_everything(17)
        workload = build(hidden=hidden)
        optimizer = workload.make_optimizer()
        trainer = Trainer(
            workload.model,
            workload.train_dataloader,
            loss_fn=workload.loss_fn,
            optimizers=optimizer,
            schedulers=workload.make_scheduler(optimizer),
            seed=17,
            device="cpu",
            run_name="foo",
            root=root,
            max_duration=max_duration,
            save_interval=save_interval,
            callbacks=callbacks,
            **{"save_num_checkpoints_to_keep": 2, **options},
        )
    except HarnessError as error:
        return tell(error)
    try:
        trainer.fit()
    except Exception as error:
        failed = FailedRunError("foo", str(trainer.session.directory.path))
        failed.__cause__ = error
        return tell(failed)
    except BaseException as error:
        return tell(error)
    return 0


def save_and_leave(root: str, *, how: str) -> int:
    """Save one checkpoint by hand and end the process without leaving the session."""
    from harness import session

    model = torch.nn.Linear(256, 256)
    run = session("foo", root=root, save_interval="1000ba", state={"model": model}).__enter__()
    for _ in run.steps([torch.ones(1)] * 3, "3ba"):
        pass
    run.save_checkpoint()
    if how == "exit":
        raise SystemExit(0)
    os._exit(0)


def refuse(root: str, numbers: Sequence[int], **how: Any) -> int:
    """Print what came of saves that were refused; arguments as of `refuse_saves`."""
    print(json.dumps(refuse_saves(root, numbers, **how)))
    return 0


def remove(path: str) -> int:
    """Remove a file, or all that is in a folder."""
    for each in Path(path).iterdir() if Path(path).is_dir() else (Path(path),):
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()
    return 0


def remount(disk: str, how: str) -> int:
    """Change how a disk is mounted."""
    return subprocess.run(["mount", "-o", f"remount,{how}", disk], check=False).returncode


def tell_what_is_there(root: str, name: str = "foo") -> int:
    """Print what a run left, for a reader that does not see this process's disk."""
    print(json.dumps(look(Path(root), name).to_dict()))
    return 0


def tell_tensorboard(root: str) -> int:
    """Print the steps that TensorBoard shows a loss of."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(Path(root) / "foo"), size_guidance={"scalars": 0}).Reload()
    print(json.dumps([event.step for event in board.Scalars(LOSS)]))
    return 0
