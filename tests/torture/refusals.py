"""Saves of one process, each with another call to the disk refused: every errno at every call, in seconds.

Runs in a child of the nursery. After each save it is seen that what was saved before is found and loads, that no
temporary file is left, and that the error says what the disk said.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from faults import ALL, CHANGES, Fault, arm, disarm, num_counted

from harness.checkpoint.find import load_checkpoint, newest_verified
from harness.checkpoint.paths import CheckpointFolder, CheckpointPaths
from harness.checkpoint.save import CheckpointWriter
from harness.checkpoint.state import build_state
from harness.errors import HarnessError
from harness.run.directory import RunDirectory

NUMEL = 40_000
STICKY = tuple(op for op in CHANGES if op not in ("unlink", "rename"))
"""What a full or broken disk goes on refusing; names can still be removed."""


@dataclass
class Refusals:
    """What came of all saves."""

    saves: int = 0
    refused: int = 0
    """Those that raised."""
    committed: int = 0
    """Those that raised although the checkpoint is there, or that a refusal did not hinder."""
    messages: list[str] = field(default_factory=list)
    """Different ones, without what changes from save to save."""
    complaints: list[str] = field(default_factory=list)


class Saves:
    """Saves step after step into the run `foo`."""

    def __init__(self, root: Path) -> None:
        directory = RunDirectory.claim(root, "foo")
        paths = CheckpointPaths.compile(
            folder="{run_name}/checkpoints", filename="ba{batch}-rank{rank}.pt", latest="latest-rank{rank}.pt"
        )
        self.root = root
        self.folder = CheckpointFolder(paths, directory.resolve, {"run_name": "foo", "rank": 0})
        self.writer = CheckpointWriter(self.folder, keep=2)
        self.step = 0
        self.good = 0
        """The newest step that was saved without an error."""

    def save(self) -> HarnessError | None:
        """Save the next step; the error, if it was refused."""
        self.step += 1
        state = build_state(
            run_name="foo",
            rank=0,
            attempt=1,
            timestamp={"epoch": 0, "batch": self.step},
            state={"weight": torch.full((NUMEL,), float(self.step))},
            position={"batch_in_epoch": 0, "start": None},
        )
        try:
            self.writer.save(state, {"epoch": 0, "batch": self.step})
        except HarnessError as error:
            return error
        self.good = self.step
        return None

    def complaints(self) -> list[str]:
        """What is wrong in the folder."""
        search = newest_verified(self.folder)
        wrong = [f"damaged: {one.path.name} {one.reason}" for one in search.skipped]
        # what could not be removed keeps a name of its own, which the next start clears away
        wrong += [f"left: {path.name}" for path in self.folder.path.iterdir() if path.suffix == ".tmp"]
        if search.found is None or search.found.step < self.good:
            return [*wrong, f"step {self.good} was saved, and {search.found} is found"]
        weight = load_checkpoint(search.found.path)["state"]["weight"]
        if not weight.eq(search.found.step).all():
            wrong.append(f"{search.found.path.name} has {weight[0]} in it")
        return wrong


def refuse_saves(
    root: str, numbers: Sequence[int], *, sticky: bool = False, ops: Sequence[str] | None = None
) -> dict[str, Any]:
    """Refuse each call of a save with each errno.

    Args:
        root: The folder that holds the run.
        numbers: The errnos.
        sticky: Refuse all later calls of the save too, save those that remove.
        ops: Kinds of calls; all that there are, if not given.
    """
    kinds = tuple(ops or (STICKY if sticky else ALL))
    found = Refusals()
    saves = Saves(Path(root))
    for _ in range(3):
        assert saves.save() is None
    for number in numbers:
        at = 0
        while True:
            at += 1
            arm(Fault(root=Path(root), do=number, at=at, times=0 if sticky else 1, ops=kinds).variables())
            error = saves.save()
            num_calls = num_counted()
            disarm()
            _judge(found, saves, error, f"{errno.errorcode[number]} at call {at}", os.strerror(number))
            if num_calls < at:
                break
    return asdict(found)


def _judge(found: Refusals, saves: Saves, error: HarnessError | None, where: str, words: str) -> None:
    found.saves += 1
    found.refused += error is not None
    found.complaints += [f"{where}: {wrong}" for wrong in saves.complaints()]
    if error is None:
        return
    search = newest_verified(saves.folder)
    found.committed += search.found is not None and search.found.step == saves.step
    message = error.message.replace(str(saves.root), "ROOT").replace(f"ba{saves.step}-", "baN-")
    if words not in message:
        found.complaints.append(f"{where}: not told: {message}")
    if message not in found.messages:
        found.messages.append(message)
