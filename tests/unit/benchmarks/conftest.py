"""A small suite that pytest-benchmark really runs, with the figures and names of the big one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SUITE = """
import pytest
from recorded import clock, record

ROUNDS = {"null": [0.01, -0.02, 0.03, 0.0, 0.01], "session": [8.0, 8.1, 8.2, 8.4, 9.0], "trainer": [11, 12, 13, 14, 15]}


@pytest.mark.benchmark(group="step", timer=clock)
@pytest.mark.parametrize("case", ROUNDS)
def test_added_to_a_step(benchmark, case):
    totals = iter(ROUNDS[case])

    def measure():
        total = next(totals)
        return {
            "bare_us": 190, "thread_us": total / 2, "background_us": total / 4, "children_us": total / 4,
            "total_us": total, "wall_us": total * 2, "added_pct": total / 1.9, "ledger_thread_us": total / 2.1,
            "ledger_background_us": total / 4.1,
        }

    record(benchmark, measure, value="total_us", rounds=5)


@pytest.mark.benchmark(group="naming")
def test_parse(benchmark):
    benchmark.pedantic(lambda: sum(range(100)), rounds=20, iterations=5)
"""


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as `--benchmark-json` writes it; not to be changed."""
    folder = tmp_path_factory.mktemp("suite")
    suite = folder / "benchmarks"
    suite.mkdir()
    for name in ("conftest.py", "recorded.py"):
        shutil.copy(BENCHMARKS / name, suite / name)
    (suite / "test_step.py").write_text(SUITE, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", f"--rootdir={folder}", "-c", os.devnull, "-p", "no:cacheprovider"]
    path = folder / "saved.json"
    ended = subprocess.run(
        [*command, str(suite), f"--benchmark-json={path}"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return path


Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def varied(measured: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Makes a copy of the measured file in which something is changed."""

    def make(change: Change) -> Path:
        data = json.loads(measured.read_bytes())
        change(data)
        path = tmp_path / "varied.json"
        path.write_text(json.dumps(data), encoding="utf-8")
        return path

    return make
