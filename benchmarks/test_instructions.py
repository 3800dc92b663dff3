"""Instructions of the naming calls, counted by callgrind: the same number on every run, where times only resemble.

The count of a call is the difference between a process that makes it often and one that makes it a few times, so that
the start of both falls out. `Timer.collect_callgrind` of torch counts the same way, but imports torch under valgrind
first: four minutes for each call instead of six seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import naming_calls
import pytest
from recorded import clock, record

FEW, MANY = 20, 1020
ROUNDS = 2
"""The second says how steady the first was."""
_COLLECTED = re.compile(r"Collected : (\d+)")


@pytest.mark.benchmark(group="instructions", timer=clock)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("call", naming_calls.CALLS)
def test_naming_call(benchmark: Any, call: str) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("instructions are not counted: there is no valgrind (on Debian: apt install valgrind)")

    def measure() -> Mapping[str, float]:
        return {"call_instructions": (count(call, MANY) - count(call, FEW)) / (MANY - FEW)}

    values = record(benchmark, measure, value="call_instructions", rounds=ROUNDS)
    assert min(values["call_instructions"]) > 100  # a call of Python that does anything at all


def count(call: str, number: int) -> int:
    """Instructions of a process that makes a call so many times."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable]
    ended = subprocess.run(
        [*command, str(Path(naming_calls.__file__)), call, str(number)],
        capture_output=True,
        text=True,
        check=False,
        # Strings hash alike in every process: a set or dict of them then takes the same way.
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    found = _COLLECTED.search(ended.stderr)
    assert ended.returncode == 0, ended.stderr
    assert found is not None, f"valgrind said nothing of what it collected:\n{ended.stderr}"
    return int(found.group(1))
