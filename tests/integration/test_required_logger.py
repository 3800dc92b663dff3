"""A logger that the run cannot do without ends it, and with everything else written; any other does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import harness
from harness.errors import LoggerError
from harness.loggers import BaseLogger, RuledLogger
from harness.loggers import fanout as fanout_module


class Breaks(BaseLogger):
    """Raises at step 5, or with `close`."""

    name = "breaks"

    def __init__(self, when: str) -> None:
        self.when = when
        self.broke = threading.Event()

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        if self.when == "step" and step == 5:
            self.broke.set()
            raise ValueError("no more room in the service")

    def close(self) -> None:
        if self.when == "close":
            raise ValueError("cannot say goodbye")


class Hangs(BaseLogger):
    name = "hangs"

    def __init__(self) -> None:
        self.release = threading.Event()

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        self.release.wait(60)


@pytest.fixture
def hanging() -> Iterator[Hangs]:
    logger = Hangs()
    yield logger
    logger.release.set()


def train(root: Path, logger: Any, breaks: Breaks | None = None) -> list[int]:
    """Forty steps; after the fifth it waits until the logger has failed."""
    done: list[int] = []
    model = torch.nn.Linear(1, 1)
    loader = [torch.ones(1, 1)] * 40
    with harness.session("foo", root=root, loggers=[logger], save_interval="1ep", state={"model": model}) as run:
        for _ in run.steps(loader, "1ep"):
            run.log({"loss": 1.0})
            if breaks is not None and run.step == 7:
                assert breaks.broke.wait(20)
            done.append(run.step)
    return done


def test_it_ends_the_run_after_the_step_in_progress(root: Path, written: Callable[..., Any]) -> None:
    breaks = Breaks("step")
    with pytest.raises(LoggerError, match="'breaks' is required, and it failed: ValueError: no more room") as caught:
        train(root, RuledLogger(breaks, required=True), breaks)
    assert caught.value.hint
    run = written()
    assert run.status == "failed"
    assert "no more room" in run.manifest.attempts[-1].error
    last = run.steps()[-1]
    assert 7 <= last < 40
    assert list(run.by_step("loss")) == list(range(1, last + 1))
    assert run.checkpoints() == [f"ep0-ba{last}-rank0.pt"]
    assert "it is required: training ends" in run.text


def test_without_required_the_run_goes_on(root: Path, written: Callable[..., Any]) -> None:
    breaks = Breaks("step")
    assert train(root, RuledLogger(breaks), breaks) == list(range(1, 41))
    assert written().status == "finished"
    assert "training goes on" in written().text


def test_an_error_at_the_end_fails_the_run(root: Path, written: Callable[..., Any]) -> None:
    with pytest.raises(LoggerError, match="cannot say goodbye"):
        train(root, RuledLogger(Breaks("close"), required=True))
    assert (written().status, written().steps()[-1]) == ("failed", 40)


def test_one_that_hangs_fails_the_run(
    root: Path, written: Callable[..., Any], hanging: Hangs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout_module.LogFanout.close, "__defaults__", (0.2,))
    with pytest.raises(LoggerError, match="'hangs' is required, and it hangs"):
        train(root, RuledLogger(hanging, required=True))
    assert (written().status, written().steps()[-1]) == ("failed", 40)


def test_the_error_of_the_training_is_not_hidden(root: Path) -> None:
    breaks = Breaks("close")
    with (
        pytest.raises(ZeroDivisionError),
        harness.session("foo", root=root, loggers=[RuledLogger(breaks, required=True)]) as run,
    ):
        for _ in run.steps([torch.ones(1)] * 3, "1ep"):
            raise ZeroDivisionError


def test_a_ruled_text_log_takes_the_place_of_the_one_that_is_always_on(root: Path, written: Callable[..., Any]) -> None:
    train(root, RuledLogger("jsonl", exclude=["loss"]))
    assert written().by_step("loss") == {}
    assert set(written().manifest.health["loggers"]) == {"jsonl", "text"}
