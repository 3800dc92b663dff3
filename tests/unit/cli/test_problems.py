from __future__ import annotations

from typing import Any

import pytest

from harness.cli.problems import find_problems

HEALTHY: dict[str, Any] = {
    "loggers": {"jsonl": {"records": 9, "errors": 0, "dropped_records": 0, "last_error": None, "hung": False}},
    "writer": {"steps": {"runs": 4, "errors": 0, "last_error": None, "hung": False, "hangs": 0}},
    "sampler": {"taken": 5, "missed": 0, "errors": 0, "resets": 0, "last_error": None, "died": False},
    "steps_file": {"bytes_written": 1, "errors": 0, "dropped_lines": 0, "last_error": None},
    "capture": {"windows_opened": 2, "windows_failed": 0, "traces_failed": 0, "errors": []},
}


def test_a_run_in_good_health_has_no_problems() -> None:
    assert find_problems(HEALTHY) == []


@pytest.mark.parametrize("health", [{}, {"loggers": None}, {"sampler": "gone", "capture": []}])
def test_health_that_was_never_written_is_no_problem(health: dict[str, Any]) -> None:
    assert find_problems(health) == []


@pytest.mark.parametrize(
    ("part", "change", "expected"),
    [
        ("sampler", {"died": True, "last_error": "OSError: x"}, "the system sampler died (the last: OSError: x)"),
        ("sampler", {"errors": 3}, "the system sampler had 3 errors"),
        ("sampler", {"missed": 2}, "the system sampler was late for 2 samples"),
        ("steps_file", {"dropped_lines": 4}, "4 steps are missing from the step file"),
        ("capture", {"traces_failed": 1}, "1 traces could not be finished"),
        ("capture", {"windows_failed": 2}, "2 capture windows failed"),
        ("capture", {"errors": ["trace x failed: no space"]}, "capture: trace x failed: no space"),
    ],
)
def test_each_fault_of_a_part_is_told(part: str, change: dict[str, Any], expected: str) -> None:
    assert find_problems({**HEALTHY, part: {**HEALTHY[part], **change}}) == [expected]


def test_faults_of_a_logger_and_of_the_writer_name_it() -> None:
    health = {
        "loggers": {"mine": {"errors": 2, "dropped_records": 5, "hung": True, "last_error": "ValueError: no"}},
        "writer": {"manifest": {"errors": 0, "hangs": 1, "last_error": None}},
    }
    assert find_problems(health) == [
        "logger mine: 2 errors, 5 records dropped, it hung at the end (the last: ValueError: no)",
        "writer thread, manifest: 0 errors, 1 hangs",
    ]
