"""One attempt of a run that is to be killed: how it is started, and when it dies.

An attempt is a child of the nursery, or a new `harness train`. What kills it is drawn anew for each:

    clock   SIGKILL after a random part of the time the attempt would take
    term    SIGTERM instead, and SIGKILL at most 0.1 s later, while it saves and ends
    save    at a random call to the disk, counted from the first of a random save
    torn    the same, after half of the bytes of a write
    call    at a random call to the disk, counted from the start
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from evidence import look
from faults import TORN, Fault
from nursery import PROJECT, Ended, Nursery, environment

NUM_STEPS, SAVE_EVERY = 60, 5
WAYS = ("clock", "term", "save", "save", "save", "torn", "call")
"""Saves more often than the rest: that is where something can be lost."""
CALLS_OF_A_SAVE, WRITES_OF_A_SAVE, CALLS_OF_A_RUN = 32, 10, 300
_MAX_GRACE_S = 0.1
_START_S = 0.3
"""What an attempt takes that has nothing to train, at the least."""
_LENGTH = ("--max-duration", f"{NUM_STEPS}ba", "--save-interval", f"{SAVE_EVERY}ba")


@dataclass(frozen=True, kw_only=True)
class Death:
    """What is to kill an attempt."""

    way: str
    """See the module."""
    fault: Fault | None = None
    """For the shim, in the ways that count calls."""
    after_s: float | None = None
    """For the clock."""
    grace_s: float | None = None
    """Between SIGTERM and SIGKILL, in the way `term`."""


UNDISTURBED = Death(way="undisturbed")


class Attempts:
    """Makes attempts of the run `foo`.

    Args:
        nursery: Forks children.
        shim: For new processes; the nursery has it already.
        recipe: A recipe that captures traces, for some of the attempts.
        chance: Draws everything.
    """

    def __init__(self, nursery: Nursery, shim: Path, recipe: Path, chance: random.Random) -> None:
        self._nursery = nursery
        self._shim = shim
        self._recipe = recipe
        self._chance = chance
        self._took_s = {False: 1.0, True: 3.0}

    def draw(self, root: Path, *, new: bool) -> Death:
        """What shall kill the next attempt of the run in `root`."""
        chance = self._chance
        way = chance.choice(WAYS)
        done = look(root).found / NUM_STEPS
        if way in ("clock", "term"):
            after_s = chance.uniform(0.0, 1.0) * (_START_S + self._took_s[new] * (1 - done))
            return Death(way=way, after_s=after_s, grace_s=chance.uniform(0, _MAX_GRACE_S) if way == "term" else None)
        if way == "call":
            return Death(way=way, fault=Fault(root=root, at=chance.randint(1, CALLS_OF_A_RUN)))
        next_save = int(done * NUM_STEPS) + SAVE_EVERY * chance.randint(1, 4)
        begin = f"ba{min(next_save, NUM_STEPS)}-"
        if way == "torn":
            at = chance.randint(1, WRITES_OF_A_SAVE)
            return Death(way=way, fault=Fault(root=root, do=TORN, at=at, begin=begin, ops=("write",)))
        return Death(way=way, fault=Fault(root=root, at=chance.randint(1, CALLS_OF_A_SAVE), begin=begin))

    def fork(self, root: Path, death: Death = UNDISTURBED, *, with_traces: bool = False) -> Ended:
        """An attempt in a child of the nursery; keeps two checkpoints."""
        ended = self._nursery.run(
            "train",
            root,
            max_duration=_LENGTH[1],
            save_interval=_LENGTH[3],
            resume="auto",
            profile=str(self._recipe) if with_traces else None,
            fault=None if death.fault is None else death.fault.variables(),
            kill_after_s=death.after_s if death.grace_s is None else (death.after_s or 0) + death.grace_s,
            signal_first=None if death.grace_s is None else (signal.SIGTERM, death.grace_s),
        )
        self._learn(ended, death, new=False)
        return ended

    def start_new(self, root: Path, death: Death = UNDISTURBED, *, with_traces: bool = False) -> Ended:
        """The same training by the command, which writes TensorBoard's files too."""
        command = [
            *(sys.executable, "-m", "harness", "train", "foo", "--root", str(root), "--workload", "workload:build"),
            *(*_LENGTH, "--keep", "2", "--seed", "17", "--device", "cpu", "--logger", "tensorboard"),
            *(("--resume",) if (root / "foo" / "run.json").exists() else ()),
            *(("--profile", str(self._recipe)) if with_traces else ()),
        ]
        begin = time.monotonic()
        process = subprocess.Popen(
            command,
            env=environment(self._shim, **({} if death.fault is None else death.fault.variables())),
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=death.after_s)
        except subprocess.TimeoutExpired:
            if death.grace_s is not None:
                process.send_signal(signal.SIGTERM)
                time.sleep(death.grace_s)
            process.kill()
            stdout, stderr = process.communicate()
        ended = Ended.of(process.returncode, stdout, stderr, time.monotonic() - begin)
        self._learn(ended, death, new=True)
        return ended

    def _learn(self, ended: Ended, death: Death, *, new: bool) -> None:
        """How long a whole run takes here and now, for the next clock."""
        if ended.code == 0 and death is UNDISTURBED:
            self._took_s[new] = max(ended.took_s, 0.5)
