"""SIGKILL at random moments of a process that does nothing but save checkpoints.

What `save` has returned must be found and load, whatever the next save was doing. One process loads torch and forks
a saver for each kill, so that the loop takes seconds. SIGKILL keeps the page cache: this says nothing of power cuts.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from harness.checkpoint.find import load_checkpoint, newest_verified
from harness.checkpoint.paths import CheckpointFolder, CheckpointPaths
from harness.run.directory import RunDirectory

NUM_KILLS = 15
NUMEL = 200_000

NURSERY = """
import os, sys
from pathlib import Path
import torch
sys.path.insert(0, os.path.dirname(sys.argv[3]))
from test_checkpoint_kill import save_for_ever
torch.set_num_threads(1)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        save_for_ever(Path(sys.argv[1]), Path(sys.argv[2]), int(line))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def open_folder(root: Path) -> CheckpointFolder:
    paths = CheckpointPaths.compile(
        folder="{run_name}/checkpoints",
        filename="ep{epoch}-ba{batch}-rank{rank}.pt",
        latest="latest-rank{rank}.pt",
    )
    return CheckpointFolder(paths, RunDirectory.find(root, "foo").resolve, {"run_name": "foo", "rank": 0})


def save_for_ever(root: Path, acknowledged: Path, step: int) -> None:
    """Save step after step from `step` on; each that is durable is noted in a file."""
    import torch

    from harness.checkpoint.save import CheckpointWriter
    from harness.checkpoint.state import build_state

    writer = CheckpointWriter(open_folder(root), keep=2)
    note = os.open(acknowledged, os.O_WRONLY | os.O_APPEND)
    weight = torch.empty(NUMEL)
    while True:
        state = build_state(
            run_name="foo",
            rank=0,
            attempt=0,
            timestamp={"epoch": 0, "batch": step},
            state={"model": {"weight": weight.fill_(step)}},
            position={"batch_in_epoch": 0, "start": None},
        )
        writer.save(state, {"epoch": 0, "batch": step})
        os.write(note, f"{step}\n".encode())
        step += 1


def test_no_acknowledged_checkpoint_is_lost_to_a_kill(tmp_path: Path) -> None:
    root, acknowledged = tmp_path / "runs", tmp_path / "acknowledged"
    RunDirectory.claim(root, "foo").release()
    acknowledged.touch()
    chance = random.Random(20)
    step = 1
    num_torn = 0
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(root), str(acknowledged), __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    with nursery:
        for _ in range(NUM_KILLS):
            before = acknowledged.stat().st_size
            print(step, file=nursery.stdin, flush=True)
            saver = int(nursery.stdout.readline())
            deadline = time.monotonic() + 30
            while acknowledged.stat().st_size == before:
                assert time.monotonic() < deadline, "nothing was saved"
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.06))
            os.kill(saver, signal.SIGKILL)
            assert nursery.stdout.readline() == "dead\n"

            last = int(acknowledged.read_text().split()[-1])
            folder = open_folder(root)
            num_torn += any(path.suffix == ".tmp" for path in folder.path.iterdir())
            search = newest_verified(folder)
            assert search.found is not None
            assert search.skipped == ()
            assert search.found.step >= last
            weight = load_checkpoint(search.found.path, run_name="foo", rank=0)["state"]["model"]["weight"]
            assert weight.eq(search.found.step).all()
            step = search.found.step + 1
        nursery.stdin.close()
    assert nursery.returncode == 0
    assert num_torn > 0, "no kill came inside a save: this test has shown nothing"
