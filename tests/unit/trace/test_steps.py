"""Step files, whole and torn."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from harness.errors import TraceFormatError
from harness.trace.steps import CAPTURE_STATES, PHASES, read_steps

PHASE_US = {"data_us": 1.0, "forward_us": 2.0, "backward_us": 3.0, "optimizer_us": 4.0}


def line(step: int, **more: object) -> str:
    fields = {"step": step, "time": 1763923387.5 + step, "epoch": 0, "step_us": 20.5, **PHASE_US}
    return json.dumps({**fields, "harness_us": 0.5, "other_us": 10, "capture": "off", **more}) + "\n"


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "steps-rank0.jsonl"
    path.write_text("".join(lines))
    return path


def test_columns_are_the_lines(tmp_path: Path) -> None:
    path = write(tmp_path, line(1), line(2, capture="warmup", epoch=3), line(3, capture="active", eval_us=7.25))
    table = read_steps(path)
    assert len(table) == 3
    assert table.step.tolist() == [1, 2, 3]
    assert table.time_s.tolist() == [1763923388.5, 1763923389.5, 1763923390.5]
    assert table.epoch.tolist() == [0, 3, 0]
    assert table.step_us.tolist() == [20.5] * 3
    assert table.eval_us.tolist() == [0, 0, 7.25]
    assert [CAPTURE_STATES[code] for code in table.capture] == ["off", "warmup", "active"]
    assert list(table.phases) == list(PHASES)
    assert table.phases["backward"].tolist() == [3.0] * 3
    assert table.phases["other"].tolist() == [10.0] * 3
    assert not table.torn


def test_a_phase_of_the_user_that_comes_late_is_zero_before(tmp_path: Path) -> None:
    table = read_steps(write(tmp_path, line(1), line(2, zeta_us=1.5), line(3, alpha_us=2.5, zeta_us=3)))
    assert list(table.phases) == [*PHASES, "alpha", "zeta"]
    assert table.phases["alpha"].tolist() == [0, 0, 2.5]
    assert table.phases["zeta"].tolist() == [0, 1.5, 3]


def test_columns_keep_together_over_blocks_of_lines(tmp_path: Path) -> None:
    count = 40_000
    lines = [line(step) for step in range(1, count)] + [line(count, late_us=9)]
    path = write(tmp_path, *lines)
    assert path.stat().st_size > 4 << 20
    table = read_steps(path)
    assert table.step.tolist() == list(range(1, count + 1))
    assert table.phases["late"].tolist() == [0] * (count - 1) + [9]


@pytest.mark.parametrize("content", ["", "\n", "\n\n"])
def test_a_file_without_steps_is_an_empty_table(tmp_path: Path, content: str) -> None:
    table = read_steps(write(tmp_path, content))
    assert len(table) == 0
    assert {len(values) for values in table.phases.values()} == {0}
    assert not table.torn


def test_half_a_last_line_is_left_out_wherever_it_is_cut(tmp_path: Path) -> None:
    last = line(3)
    for cut in range(1, len(last) - 2):
        table = read_steps(write(tmp_path, line(1), line(2), last[:cut]))
        assert table.step.tolist() == [1, 2]
        assert table.torn
    only_the_newline_missing = read_steps(write(tmp_path, line(1), line(2), last.rstrip()))
    assert only_the_newline_missing.step.tolist() == [1, 2, 3]
    assert not only_the_newline_missing.torn


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{broken\n", "not a step"),
        ("\x00\x00\n", "not a step"),
        ('{"time": 1, "step_us": 2}\n', "'step'"),
        (line(3, capture="sometimes"), "sometimes"),
        (line(3, step_us="NaN"), "expected numbers"),
        (line(3, data_us="1"), "expected numbers"),
        (line(3, extra=[1]), "not a step"),
        (line(3).replace('"step": 3', '"step": 3.5'), "expected numbers"),
        (line(10**30), "not a step"),
        ("7\n", "not a step"),
    ],
)
def test_a_wrong_line_is_an_error_with_file_and_line(tmp_path: Path, bad: str, reason: str) -> None:
    path = write(tmp_path, line(1), line(2), bad, line(4))
    with pytest.raises(TraceFormatError, match=reason) as error:
        read_steps(path)
    assert f"{path}, line 3:" in str(error.value)


def test_the_line_number_is_that_of_the_file_after_a_block(tmp_path: Path) -> None:
    lines = [line(step) for step in range(1, 40_001)]
    lines[39_990] = "{}\n"
    with pytest.raises(TraceFormatError, match="line 39991:"):
        read_steps(write(tmp_path, *lines))


def test_a_missing_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(TraceFormatError, match=r"nowhere\.jsonl: cannot be read"):
        read_steps(tmp_path / "nowhere.jsonl")


@pytest.mark.slow
def test_a_million_steps_are_read_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    template = line(123_456_789)
    path.write_text("".join(template.replace("123456789", str(step), 1) for step in range(1, 1_000_001)))
    start = time.process_time()
    table = read_steps(path)
    assert time.process_time() - start < 6
    assert int(table.step.sum()) == 500_000_500_000
