"""What it costs to start: CPU time of fresh processes, start of the interpreter included."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from typing import Any

import pytest

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import-harness": [sys.executable, "-c", "import harness"],
    "harness-help": [sys.executable, "-m", "harness", "--help"],
}


def _cpu_ms(command: list[str]) -> float:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return (usage.ru_utime + usage.ru_stime) * 1000


@pytest.mark.benchmark(group="start")
@pytest.mark.parametrize("name", COMMANDS)
def test_cpu_time_of_a_start(benchmark: Any, name: str) -> None:
    cpu_ms: list[float] = []
    benchmark.pedantic(lambda: cpu_ms.append(_cpu_ms(COMMANDS[name])), rounds=7, warmup_rounds=1)
    benchmark.extra_info["cpu_ms"] = round(statistics.median(cpu_ms), 1)
    print(f"\n{name}: {statistics.median(cpu_ms):.0f} ms CPU")
