from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from harness.loggers.base import RunInfo
from harness.loggers.text import TextLogger

MakeRun = Callable[..., RunInfo]
S = 1_000_000_000
START_NS = 1_767_323_045_006_000_000  # 2026-01-02T03:04:05.006Z


def body(path: Path) -> list[str]:
    """The lines without their times."""
    return [line.split(" ", 1)[1] for line in path.read_text().splitlines()]


def test_every_line_begins_with_its_time_in_utc(run_info: MakeRun) -> None:
    run = run_info()
    logger = TextLogger()
    logger.open(run)
    logger.log_text("hello\nworld", time_ns=START_NS)
    logger.close()
    header, first, second = (run.directory / "logs-rank0.txt").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z attempt 1 of foo", header)
    assert first == "2026-01-02T03:04:05.006Z hello"
    assert second == "2026-01-02T03:04:05.006Z world"


def test_earlier_attempts_are_kept_and_a_resume_says_where_it_goes_on(run_info: MakeRun) -> None:
    for run in (run_info(), run_info(attempt=2, resumed_step=57), run_info(attempt=3)):
        logger = TextLogger()
        logger.open(run)
        logger.log_text(f"in attempt {run.attempt}", time_ns=START_NS)
        logger.close()
    assert body(run_info().directory / "logs-rank0.txt") == [
        "attempt 1 of foo",
        "in attempt 1",
        "attempt 2 of foo, resumed at step 57",
        "in attempt 2",
        "attempt 3 of foo, resumed at step 0",
        "in attempt 3",
    ]


def test_metrics_are_shown_now_and_then_and_the_last_ones_at_the_end(run_info: MakeRun) -> None:
    run = run_info()
    logger = TextLogger(metrics_interval_s=10)
    logger.open(run)
    for second in range(25):
        logger.log_metrics(second + 1, {"loss": 1 / (second + 3), "count": 12345678}, time_ns=START_NS + second * S)
    logger.close()
    assert body(run.directory / "logs-rank0.txt")[1:] == [
        "step 1 loss 0.3333 count 12345678",
        "step 11 loss 0.07692 count 12345678",
        "step 21 loss 0.04348 count 12345678",
        "step 25 loss 0.03704 count 12345678",
    ]


def test_a_clock_that_is_set_back_does_not_silence_the_metrics(run_info: MakeRun) -> None:
    run = run_info()
    logger = TextLogger(metrics_interval_s=10)
    logger.open(run)
    logger.log_metrics(1, {"loss": 1.0}, time_ns=START_NS)
    logger.log_metrics(2, {"loss": 2.0}, time_ns=START_NS - 3600 * S)
    logger.flush()
    assert body(run.directory / "logs-rank0.txt")[1:] == ["step 1 loss 1", "step 2 loss 2"]
    logger.close()


def test_texts_cannot_steer_a_terminal_or_forge_a_line(run_info: MakeRun) -> None:
    run = run_info()
    logger = TextLogger()
    logger.open(run)
    logger.log_text("a\x1b[2Jb\u202ec\ud800d\te größe", time_ns=START_NS)
    logger.log_text("x\r2026-01-02T03:04:05.006Z forged", time_ns=START_NS)
    logger.close()
    raw = (run.directory / "logs-rank0.txt").read_bytes()
    assert b"\x1b" not in raw
    assert b"\r" not in raw
    assert body(run.directory / "logs-rank0.txt")[1:] == [
        "a\\x1b[2Jb\\u202ec\\ud800d\te größe",
        "x",
        "2026-01-02T03:04:05.006Z forged",
    ]
    assert len(raw.splitlines()) == 4


def test_parameters_are_one_line(run_info: MakeRun) -> None:
    run = run_info()
    logger = TextLogger()
    logger.open(run)
    logger.log_params({"lr": 0.1, "note": "two\nlines"})
    logger.close()
    assert body(run.directory / "logs-rank0.txt")[1:] == ["params lr=0.1 note=two\\nlines"]
