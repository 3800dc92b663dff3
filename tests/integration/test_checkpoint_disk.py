"""Checkpoints on a disk that is full, or nearly so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from small_disk import on_small_disk

SAVE_UNTIL_FULL = """
import sys
from pathlib import Path
import torch
from harness.checkpoint.find import load_checkpoint, newest_verified
from harness.checkpoint.paths import CheckpointFolder, CheckpointPaths
from harness.checkpoint.save import CheckpointWriter
from harness.checkpoint.state import build_state
from harness.errors import CheckpointError
from harness.run.directory import RunDirectory

paths = CheckpointPaths.compile(folder="{run_name}/checkpoints", filename="ba{batch}.pt", latest="latest.pt")
directory = RunDirectory.claim(Path(sys.argv[1]) / "runs", "foo")
folder = CheckpointFolder(paths, directory.resolve, {"run_name": "foo", "rank": 0})
writer = CheckpointWriter(folder)
step = 0
try:
    while True:
        step += 1
        state = build_state(
            run_name="foo", rank=0, attempt=0, timestamp={"epoch": 0, "batch": step},
            state={"weight": torch.full((500_000,), float(step))}, position={"batch_in_epoch": 0, "start": None},
        )
        writer.save(state, {"batch": step})
except CheckpointError as error:
    print(error)
search = newest_verified(folder)
assert search.found.step == step - 1 and not search.skipped
assert load_checkpoint(search.found.path)["state"]["weight"][0] == step - 1
assert not [path for path in folder.path.iterdir() if path.suffix == ".tmp"]
(folder.path / "ba1.pt").unlink()
writer.save(state, {"batch": step})
assert newest_verified(folder).found.step == step
print("step", step)
"""


def run_on_small_disk(script: str, folder: Path, *, size: str) -> subprocess.CompletedProcess[str]:
    """Run a program whose first argument is a folder of this size."""
    return subprocess.run(
        [*on_small_disk(folder, size), sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_a_full_disk_costs_the_one_checkpoint_that_did_not_fit(tmp_path: Path) -> None:
    done = run_on_small_disk(SAVE_UNTIL_FULL, tmp_path, size="9m")
    assert done.returncode == 0, done.stderr
    told, hint, end = done.stdout.splitlines()
    assert told.startswith("ba5.pt could not be saved in ")
    assert re.search(r"No space left on device; it needs 2\.\d+ MB and [\d.]+ [kM]B are free$", told)
    assert hint.startswith("hint: free some space")
    assert end == "step 5"


TRAIN_THOUGH_FULL = """
import sys
from pathlib import Path
import torch
from harness import session
from harness.errors import CheckpointError

root = Path(sys.argv[1]) / "runs"
model = torch.nn.Linear(700, 700)
for policy in ("raise", "warn"):
    taken = 0
    try:
        with session(policy, root=root, state={"model": model}, save_interval="2ba", on_save_error=policy) as run:
            for _ in run.steps([torch.ones(1)] * 6, "1ep"):
                taken += 1
    except CheckpointError as error:
        print(error.message)
    print(policy, taken, run.attempt.manifest.snapshot().status if taken else "")
"""


def test_a_disk_that_is_nearly_full_is_found_before_the_first_step(tmp_path: Path) -> None:
    done = run_on_small_disk(TRAIN_THOUGH_FULL, tmp_path, size="1m")
    assert done.returncode == 0, done.stderr
    told, raised, warned = done.stdout.splitlines()
    assert "could not be saved in" in told and "it needs 2.0" in told and "are free" in told
    assert raised == "raise 0 "
    assert warned == "warn 6 finished"
