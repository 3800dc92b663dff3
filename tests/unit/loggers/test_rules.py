from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError
from harness.loggers import BaseLogger, RuledLogger, RunInfo
from harness.loggers.jsonl import JsonlLogger

MS = 1_000_000


class Kept(BaseLogger):
    name = "kept"

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.samples: list[tuple[int, dict[str, float]]] = []
        self.calls: list[str] = []

    def open(self, run: RunInfo) -> None:
        self.calls.append("open")

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        self.rows.append((step, dict(metrics)))

    def log_system(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        self.samples.append((step, dict(metrics)))

    def log_params(self, params: Mapping[str, object]) -> None:
        self.calls.append("params")

    def log_text(self, line: str, *, time_ns: int) -> None:
        self.calls.append("text")

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        ([], [], ["loss/train/total", "loss/eval/total", "lr", "Loss"]),
        (["loss/*"], [], ["loss/train/total", "loss/eval/total"]),
        (["loss/*", "lr"], ["*/eval/*"], ["loss/train/total", "lr"]),
        ([], ["l?"], ["loss/train/total", "loss/eval/total", "Loss"]),
        (["nothing"], [], []),
    ],
)
def test_patterns_choose_the_metrics(include: list[str], exclude: list[str], taken: list[str]) -> None:
    kept = Kept()
    logger = RuledLogger(kept, include=include, exclude=exclude)
    for step in (1, 2):
        logger.log_metrics(
            step, {"loss/train/total": 1.0, "loss/eval/total": 2.0, "lr": 3.0, "Loss": 4.0}, time_ns=step
        )
    assert [(step, list(row)) for step, row in kept.rows] == ([(1, taken), (2, taken)] if taken else [])


def test_system_samples_go_by_their_prefix() -> None:
    kept = Kept()
    logger = RuledLogger(kept, include=["system/cpu*"])
    logger.log_metrics(1, {"cpu": 1.0}, time_ns=1)
    logger.log_system(1, {"cpu_pct": 2.0, "rss_bytes": 3.0}, time_ns=1)
    logger.log_system(1, {"rss_bytes": 3.0}, time_ns=1)
    assert (kept.rows, kept.samples) == ([], [(1, {"cpu_pct": 2.0})])


def test_of_each_metric_the_first_in_so_many_steps_is_taken() -> None:
    kept = Kept()
    logger = RuledLogger(kept, every="10ba")
    for step in range(1, 31):
        metrics = {"loss": float(step), **({"eval": 0.5} if step in (15, 30) else {})}
        logger.log_metrics(step, metrics, time_ns=step)
    assert kept.rows == [
        (1, {"loss": 1.0}),
        (10, {"loss": 10.0}),
        (15, {"eval": 0.5}),
        (20, {"loss": 20.0}),
        (30, {"loss": 30.0, "eval": 0.5}),
    ]


def test_of_each_metric_the_first_in_a_stretch_of_time_is_taken() -> None:
    kept = Kept()
    logger = RuledLogger(kept, every="0.5sec")
    for step in range(1, 9):
        logger.log_metrics(step, {"loss": float(step)}, time_ns=step * 200 * MS)
    assert [step for step, _ in kept.rows] == [1, 3, 5, 8]


def test_all_else_goes_through(run_info: Callable[..., RunInfo]) -> None:
    kept = Kept()
    logger = RuledLogger(kept, include=["nothing"])
    logger.open(run_info())
    logger.log_params({"lr": 1})
    logger.log_text("line", time_ns=1)
    logger.flush()
    logger.close()
    assert kept.calls == ["open", "params", "text", "flush", "close"]
    assert logger.name == "kept"


def test_it_has_what_its_logger_has_and_no_more(run_info: Callable[..., RunInfo], tmp_path: Path) -> None:
    jsonl = RuledLogger("jsonl")
    assert isinstance(jsonl.logger, JsonlLogger)
    jsonl.open(run_info())
    assert len(jsonl.file_health()) == 2  # type: ignore[attr-defined]
    jsonl.close()
    assert not hasattr(jsonl, "on_progress")
    plain = RuledLogger(BaseLogger())
    assert [name for name in ("log_system", "on_progress", "file_health") if hasattr(plain, name)] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"include": "loss/*"}, "include='loss/\\*' is a string"),
        ({"exclude": [3]}, "exclude holds 3"),
        ({"exclude": [""]}, "exclude holds ''"),
        ({"every": "2ep"}, "every=2ep counts neither steps nor time"),
        ({"every": "0.1dur"}, "every=0.1dur is a fraction"),
        ({"every": "often"}, "every='often' is no duration"),
        ({"every": "0ba"}, "greater than zero"),
    ],
)
def test_rules_that_cannot_work_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        RuledLogger(Kept(), **options)
    assert caught.value.hint


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="'kept' is not known"):
        RuledLogger("kept")
