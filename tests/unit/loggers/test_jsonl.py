from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import RunDirError, TemplateError
from harness.loggers.base import RunInfo
from harness.loggers.jsonl import JsonlLogger

MakeRun = Callable[..., RunInfo]
TIME_NS = 1_763_923_387_123_456_789


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def write(run: RunInfo, steps: range) -> None:
    logger = JsonlLogger()
    logger.open(run)
    for step in steps:
        logger.log_metrics(step, {"loss": step / 4}, time_ns=TIME_NS)
        logger.log_system(step, {"cpu_pct": 50.0}, time_ns=TIME_NS)
    logger.close()


def test_a_record_is_one_line_with_step_and_time_in_front(run_info: MakeRun) -> None:
    run = run_info(rank=3)
    logger = JsonlLogger()
    logger.open(run)
    logger.log_metrics(12, {"loss": 0.25, "count": 3}, time_ns=TIME_NS)
    logger.log_system(12, {"cpu_pct": 50.0}, time_ns=TIME_NS)
    logger.flush()
    assert (run.directory / "metrics-rank3.jsonl").read_text() == (
        '{"step":12,"time":1763923387.123456,"loss":0.25,"count":3}\n'
    )
    assert (run.directory / "system-rank3.jsonl").read_text() == (
        '{"step":12,"time":1763923387.123456,"cpu_pct":50.0}\n'
    )
    logger.close()


@pytest.mark.parametrize("microseconds", [0, 1, 100_000, 123_457, 999_999])
def test_times_are_written_with_six_decimals_at_most(run_info: MakeRun, microseconds: int) -> None:
    run = run_info()
    logger = JsonlLogger()
    logger.open(run)
    logger.log_metrics(1, {"loss": 1.0}, time_ns=(1_763_923_387_000_000 + microseconds) * 1000)
    logger.close()
    text = (run.directory / "metrics-rank0.jsonl").read_text()
    whole, _, decimals = text.split('"time":')[1].split(",")[0].partition(".")
    assert whole == "1763923387"
    assert int(decimals.ljust(6, "0")) == microseconds


def test_thousands_of_records_stay_whole_and_in_order(run_info: MakeRun) -> None:
    run = run_info()
    write(run, range(1, 2001))
    assert [line["step"] for line in lines(run.directory / "metrics-rank0.jsonl")] == list(range(1, 2001))


def test_values_json_has_no_number_for_are_written_as_text(run_info: MakeRun) -> None:
    run = run_info()
    logger = JsonlLogger()
    logger.open(run)
    logger.log_metrics(1, {"a": 1.0}, time_ns=TIME_NS)
    logger.log_metrics(2, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.5}, time_ns=TIME_NS)
    logger.log_metrics(3, {"null": 3.0, "x:null": 4}, time_ns=TIME_NS)
    logger.close()
    first, second, third = lines(run.directory / "metrics-rank0.jsonl")
    assert first["a"] == 1.0
    assert [second[name] for name in "abcd"] == ["NaN", "Infinity", "-Infinity", 0.5]
    assert (third["null"], third["x:null"]) == (3.0, 4)


def test_integers_too_large_for_64_bits_do_not_stop_the_file(run_info: MakeRun) -> None:
    run = run_info()
    logger = JsonlLogger()
    logger.open(run)
    logger.log_metrics(1, {"edge": 2**64 - 1, "low": -(2**63), "big": 2**70, "huge": -(10**5000)}, time_ns=TIME_NS)
    logger.close()
    [line] = lines(run.directory / "metrics-rank0.jsonl")
    assert (line["edge"], line["low"], line["big"], line["huge"]) == (
        2**64 - 1,
        -(2**63),
        2.0**70,
        "-Infinity",
    )


def test_names_with_quotes_and_other_letters_stay_valid_json(run_info: MakeRun) -> None:
    run = run_info()
    logger = JsonlLogger()
    logger.open(run)
    logger.log_metrics(1, {'say "hi"\\': 1.0, "größe": 2.0}, time_ns=TIME_NS)
    logger.close()
    [line] = lines(run.directory / "metrics-rank0.jsonl")
    assert line['say "hi"\\'] == 1.0
    assert line["größe"] == 2.0


def test_a_resumed_run_is_cut_back_to_the_step_it_goes_on_after(run_info: MakeRun) -> None:
    write(run_info(), range(1, 11))
    path = run_info().directory / "metrics-rank0.jsonl"
    with path.open("a") as file:
        file.write('{"step":11,"ti')  # killed in the middle of a line
    write(run_info(attempt=2, resumed_step=6), range(7, 9))
    for name in ("metrics-rank0.jsonl", "system-rank0.jsonl"):
        steps = [line["step"] for line in lines(run_info().directory / name)]
        assert steps == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_second_attempt_without_a_checkpoint_starts_the_files_anew(run_info: MakeRun) -> None:
    write(run_info(), range(1, 5))
    write(run_info(attempt=2), range(1, 3))
    steps = [line["step"] for line in lines(run_info().directory / "metrics-rank0.jsonl")]
    assert steps == [1, 2]


def test_a_folder_that_cannot_be_written_is_found_at_open(run_info: MakeRun) -> None:
    run = run_info()
    (run.directory / "metrics-rank0.jsonl").mkdir()
    with pytest.raises(RunDirError):
        JsonlLogger().open(run)


def test_a_bad_template_is_refused_at_construction() -> None:
    with pytest.raises(TemplateError):
        JsonlLogger(metrics="{run_nmae}/metrics.jsonl")
