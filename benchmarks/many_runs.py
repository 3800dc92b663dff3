"""A root that holds many finished runs, each with a `run.json` as a real run writes it."""

from __future__ import annotations

from pathlib import Path

import harness

DIRECTORY_MODE = 0o755


def make_runs(root: Path, num_runs: int) -> None:
    """Train one run of a single step in `root`, and stand copies of its manifest beside it.

    Args:
        root: An empty folder.
        num_runs: How many there are afterwards: `run-000000` and so on.
    """
    with harness.session("run-000000", root=root) as run:
        for _ in run.steps([0], max_duration="1ba"):
            pass
    manifest = (root / "run-000000" / "run.json").read_bytes()
    for number in range(1, num_runs):
        name = f"run-{number:06d}"
        folder = root / name
        folder.mkdir(mode=DIRECTORY_MODE)
        (folder / "run.json").write_bytes(manifest.replace(b"run-000000", name.encode()))
