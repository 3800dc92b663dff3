"""What it costs to start: CPU and wall time of fresh processes.

`test_cpu_time` tells the whole process, the interpreter's own start included, as a user waits for that too. The
budgets are for the whole; `python` is what there would be without the harness.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from many_runs import make_runs
from recorded import clock, record

COMMANDS = {
    "python": ["-c", "pass"],
    "import-harness": ["-c", "import harness"],
    "first-name": ["-c", "from harness.naming import NameGenerator; NameGenerator().generate()"],
    "help": ["-m", "harness", "--help"],
}
NUM_RUNS = 1000
ROUNDS = 15
FIRST_STEP = Path(__file__).with_name("first_step.py")

pytestmark = pytest.mark.benchmark(group="start", timer=clock)


@pytest.mark.parametrize("name", COMMANDS)
def test_cpu_time(benchmark: Any, name: str) -> None:
    record_process(benchmark, COMMANDS[name])


def test_ls_of_1000_runs(benchmark: Any, tmp_path: Path) -> None:
    make_runs(tmp_path, NUM_RUNS)
    command = ["-m", "harness", "ls", "--root", str(tmp_path)]
    listed = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True).stdout
    assert listed.count("run-") == NUM_RUNS
    record_process(benchmark, command)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("loop", ["session", "trainer"])
def test_time_to_the_first_step(benchmark: Any, tmp_path: Path, processes: int, loop: str) -> None:
    """What a first step comes later than in a script without the harness; the two scripts take turns."""

    def measure() -> Mapping[str, float]:
        bare, ours = measure_first_step("bare", tmp_path), measure_first_step(loop, tmp_path)
        return {
            "added_wall_ms": ours["wall_ms"] - bare["wall_ms"],
            "added_cpu_ms": ours["cpu_ms"] - bare["cpu_ms"],
            "bare_wall_ms": bare["wall_ms"],
            "bare_cpu_ms": bare["cpu_ms"],
        }

    measure()  # what is read from the disk for the first time is nobody's
    record(benchmark, measure, value="added_cpu_ms", rounds=processes)


def record_process(benchmark: Any, arguments: Sequence[str]) -> None:
    """Save what a whole process of this interpreter takes."""
    measure_process(arguments)
    record(benchmark, lambda: measure_process(arguments), value="cpu_ms", rounds=ROUNDS)


def measure_process(arguments: Sequence[str]) -> dict[str, float]:
    """CPU and wall time of one process from its start to its end."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return {"cpu_ms": 1000 * (usage.ru_utime + usage.ru_stime), "wall_ms": 1000 * wall_s}


def measure_first_step(loop: str, root: Path) -> dict[str, float]:
    """CPU time of a process up to the end of its first step, and wall time since before it was started."""
    begin_ns = time.time_ns()
    command = [sys.executable, str(FIRST_STEP), loop, str(root)]
    cpu_ns, end_ns = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split()
    return {"cpu_ms": int(cpu_ns) / 1e6, "wall_ms": (int(end_ns) - begin_ns) / 1e6}
