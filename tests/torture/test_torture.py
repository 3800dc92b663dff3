"""The short form of `make torture`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from nursery import HERE

NUM_KILLS = 10


@pytest.mark.slow
def test_runs_that_are_killed_at_random_end_as_one_that_is_not(shim: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    command = [
        sys.executable,
        str(HERE / "torture.py"),
        "--kills",
        str(NUM_KILLS),
        "--seed",
        "5",
        "--report",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report["ok"]
    assert report["kills"] == NUM_KILLS
    assert report["kills_inside_a_save"] > 0
    assert report["losses"] == report["resumes_refused"] == 0
    assert report["runs"] == report["runs_bit_equal"] > 0
    assert report["resumes"] >= NUM_KILLS / 2
    assert f"kills           {NUM_KILLS}" in done.stdout
