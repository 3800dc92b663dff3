"""Checkpoints that are written beside the training: what waits for what, what goes wrong, which ones stay."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import Trainer, session
from harness.checkpoint.find import load_checkpoint
from harness.errors import CheckpointError, ConfigError
from harness.loggers.base import BaseLogger

Limit = Callable[[int], AbstractContextManager[None]]
BATCHES = [torch.full((2, 1), float(number)) for number in range(10)]
LARGE = 512
"""A layer of this width squared has 1 MB."""


class SlowLogger(BaseLogger):
    """What a save waits for: a line of each step before it has to be on the disk."""

    name = "slow"

    def log_metrics(self, step: int, metrics: Any, *, time_ns: int) -> None:
        time.sleep(0.3)


def test_training_goes_on_while_a_checkpoint_is_written(root: Path, written: Callable[..., Any]) -> None:
    model = torch.nn.Linear(1, 1)
    with session("foo", root=root, state={"model": model}, save_interval="2ba", loggers=[SlowLogger()]) as run:
        for _ in run.steps(BATCHES, "3ba"):
            run.log({"number": run.step})
            if run.step == 3:
                assert written().checkpoints() == []
                assert any(thread.name == "harness-checkpoint" for thread in threading.enumerate())
            with torch.no_grad():
                model.weight.fill_(run.step)
    foo = written()
    assert foo.checkpoints() == ["ep0-ba2-rank0.pt", "ep0-ba3-rank0.pt"]
    for step in (2, 3):
        content = load_checkpoint(foo.path / "checkpoints" / f"ep0-ba{step}-rank0.pt")
        assert content["state"]["model"]["weight"].item() == step, "the copy is of the step it is named after"
    assert foo.manifest.own_cost["threads_cpu_ns"]["checkpoint"] > 0


def test_one_save_is_under_way_and_the_next_waits_and_is_counted(root: Path, written: Callable[..., Any]) -> None:
    state = {"model": torch.nn.Linear(1, 1)}
    with session("foo", root=root, state=state, save_interval="1ba", loggers=[SlowLogger()]) as run:
        for _ in run.steps(BATCHES, "4ba"):
            run.log({"number": run.step})
            assert sum(thread.name == "harness-checkpoint" for thread in threading.enumerate()) <= 1
    foo = written()
    assert len(foo.checkpoints()) == 4
    health = foo.manifest.health["checkpoints"]
    assert health["saved"] == 4
    assert health["waited"] >= 2
    assert health["waited_ns"] > 100_000_000
    assert foo.manifest.own_cost["training_thread_ns"]["checkpoint"] >= health["waited_ns"]


@pytest.mark.parametrize("save_async", [True, False])
def test_a_save_that_fails_ends_the_run_at_the_end_of_a_step(
    save_async: bool, root: Path, written: Callable[..., Any], no_file_larger_than: Limit
) -> None:
    state = {"model": torch.nn.Linear(LARGE, LARGE)}
    steps = []
    with (
        no_file_larger_than(200_000),
        pytest.raises(CheckpointError, match="File too large") as caught,
        session("foo", root=root, state=state, save_interval="2ba", save_async=save_async) as run,
    ):
        for _ in run.steps(BATCHES, "10ep"):
            steps.append(run.step)
            time.sleep(0.01)
    assert "ep0-ba2-rank0.pt could not be saved" in caught.value.message
    assert "it needs 1.0" in caught.value.message
    foo = written()
    assert foo.status == "failed"
    assert 2 <= steps[-1] < 100
    assert foo.steps() == steps, "the step during which it was raised is whole"
    assert foo.checkpoints() == []
    assert not list((foo.path / "checkpoints").glob(".*"))
    assert foo.manifest.health["checkpoints"]["failed"] >= 1


@pytest.mark.parametrize("save_async", [True, False])
def test_training_goes_on_without_a_checkpoint_where_that_is_asked_for(
    save_async: bool,
    root: Path,
    written: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    no_file_larger_than: Limit,
) -> None:
    model = torch.nn.Linear(LARGE, LARGE)
    options: dict[str, Any] = {"save_interval": "2ba", "save_async": save_async, "on_save_error": "warn"}
    with caplog.at_level(logging.WARNING), session("foo", root=root, state={"model": model}, **options) as run:
        with no_file_larger_than(200_000):
            for _ in run.steps(BATCHES, "7ba"):
                pass
            run.saver.finish()
        for _ in run.steps(BATCHES, "9ba"):
            pass
    foo = written()
    assert foo.status == "finished"
    assert foo.checkpoints() == ["ep0-ba8-rank0.pt", "ep0-ba9-rank0.pt"]
    health = foo.manifest.health["checkpoints"]
    assert health["failed"] == 3
    assert health["unsaved"] is None, "later ones were saved"
    assert "the checkpoint of step 6 was not saved: ep0-ba6-rank0.pt could not be saved" in caplog.text
    assert "the checkpoint of step 4 was not saved" in (foo.path / "logs-rank0.txt").read_text()


def test_what_was_never_saved_is_in_the_manifest(
    root: Path, written: Callable[..., Any], no_file_larger_than: Limit
) -> None:
    state = {"model": torch.nn.Linear(LARGE, LARGE)}
    with (
        no_file_larger_than(200_000),
        session("foo", root=root, state=state, save_interval="1ep", on_save_error="warn") as run,
    ):
        for _ in run.steps(BATCHES, "3ba"):
            pass
    foo = written()
    assert foo.status == "finished"
    assert foo.manifest.health["checkpoints"]["unsaved"].startswith("the checkpoint of step 3 was not saved")


def test_a_state_that_no_load_would_read_is_an_error_whatever_is_asked_for(root: Path) -> None:
    class Odd(torch.nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {"weight": object()}

    with (
        pytest.raises(CheckpointError, match="no safe load could read back"),
        session("foo", root=root, state={"m": Odd(1, 1)}, save_interval="1ba", on_save_error="warn") as run,
    ):
        for _ in run.steps(BATCHES, "3ba"):
            pass


class TestBest:
    LOSSES = (5.0, 3.0, 4.0, float("nan"), 2.0, 3.0, 2.5, 6.0)

    def train(self, root: Path, *, steps: int = 8, **options: Any) -> None:
        with session("foo", root=root, state={"model": torch.nn.Linear(1, 1)}, **options) as run:
            for _ in run.steps(BATCHES, f"{steps}ba"):
                run.log({"val": torch.tensor(self.LOSSES[run.step - 1])})

    def test_the_best_stay_and_the_newest_too(self, root: Path, written: Callable[..., Any]) -> None:
        self.train(root, save_interval="1ba", save_best="val:min:2", save_num_checkpoints_to_keep=1)
        foo = written()
        assert foo.checkpoints() == ["ep0-ba5-rank0.pt", "ep0-ba7-rank0.pt", "ep0-ba8-rank0.pt"]
        assert str((foo.path / "checkpoints" / "best-rank0.pt").readlink()) == "ep0-ba5-rank0.pt"
        assert str((foo.path / "checkpoints" / "latest-rank0.pt").readlink()) == "ep0-ba8-rank0.pt"
        index = json.loads((foo.path / "checkpoints" / "checkpoints-rank0.json").read_bytes())
        assert [(one["step"], one["metric"], one["value"]) for one in index.values()] == [
            (5, "val", 2.0),
            (7, "val", 2.5),
            (8, "val", 6.0),
        ]

    def test_only_the_best_are_saved_where_no_interval_is_given(self, root: Path, written: Callable[..., Any]) -> None:
        self.train(root, save_best="val:max:2")
        assert written().checkpoints() == ["ep0-ba1-rank0.pt", "ep0-ba8-rank0.pt"]

    def test_what_was_saved_for_being_best_goes_when_it_is_outdone_and_the_rest_stays(
        self, root: Path, written: Callable[..., Any]
    ) -> None:
        self.train(root, save_interval="3ba", save_best="val:min")
        steps = sorted(int(name.split("-")[1][2:]) for name in written().checkpoints())
        assert steps == [3, 5, 6, 8], "1 and 2 were the best for a while"

    def test_the_best_of_an_earlier_attempt_counts(self, root: Path, written: Callable[..., Any]) -> None:
        options = {"save_interval": "3ba", "save_best": "val:min", "save_num_checkpoints_to_keep": 1}
        self.train(root, steps=5, **options)
        self.train(root, resume=True, **options)
        assert written().checkpoints() == ["ep0-ba5-rank0.pt", "ep0-ba8-rank0.pt"]

    def test_an_evaluation_behind_the_last_checkpoint_is_noted_in_it(
        self, root: Path, written: Callable[..., Any]
    ) -> None:
        def outputs(values: Any, batch: Any) -> Any:
            return values.square().mean()

        model = torch.nn.Linear(1, 1)
        Trainer(
            model,
            BATCHES,
            max_duration="7ba",
            loss_fn=outputs,
            eval_dataloader=BATCHES,
            eval_interval="5ba",
            save_interval="7ba",
            save_best="loss/eval/total:min",
            run_name="foo",
            root=root,
        ).fit()
        foo = written()
        index = json.loads((foo.path / "checkpoints" / "checkpoints-rank0.json").read_bytes())
        assert [one["step"] for one in index.values()] == [5, 7]
        assert all(one["value"] > 0 for one in index.values())
        assert str((foo.path / "checkpoints" / "best-rank0.pt").readlink()) == "ep0-ba7-rank0.pt"

    def test_the_loss_of_the_trainer_itself(
        self, make_trainer: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        make_trainer(max_duration="2ep", save_interval=None, save_best="loss/train/total:min:2").fit()
        foo = written()
        losses = foo.by_step("loss/train/total")
        best = sorted(losses, key=losses.__getitem__)[:2]
        index = json.loads((foo.path / "checkpoints" / "checkpoints-rank0.json").read_bytes())
        values = {one["step"]: one["value"] for one in index.values()}
        assert values == {step: losses[step] for step in sorted(best)}
        assert str((foo.path / "checkpoints" / "best-rank0.pt").readlink()).endswith(f"-ba{best[0]}-rank0.pt")

    def test_a_metric_that_is_never_logged_is_told_of(
        self, root: Path, caplog: pytest.LogCaptureFixture, written: Callable[..., Any]
    ) -> None:
        with caplog.at_level(logging.WARNING):
            self.train(root, save_interval="1ep", save_best="vla:min")
        assert "save_best goes by 'vla', which was never logged" in caplog.text
        assert written().checkpoints() == ["ep0-ba8-rank0.pt"]


def test_weights_alone_hold_the_modules_and_nobody_goes_on_from_them(root: Path, written: Callable[..., Any]) -> None:
    model = torch.nn.Linear(1, 1)
    state = {"model": model, "optimizer": torch.optim.Adam(model.parameters())}
    options: dict[str, Any] = {"root": root, "state": state, "save_interval": "1ep", "save_weights_only": True}
    with session("foo", **options) as run:
        for _ in run.steps(BATCHES, "3ba"):
            pass
    (name,) = written().checkpoints()
    content = load_checkpoint(written().path / "checkpoints" / name)
    assert list(content["state"]) == ["model"]
    assert content["rng"] == {}
    with pytest.raises(CheckpointError, match="save_weights_only") as caught:
        session("foo", **options, resume=True)
    assert "load_path=" in str(caught.value)


def test_one_name_for_all_steps_needs_to_be_asked_for(root: Path, written: Callable[..., Any]) -> None:
    options: dict[str, Any] = {"root": root, "save_interval": "2ba", "save_filename": "model.pt"}
    with pytest.raises(ConfigError, match="save_overwrite=True"):
        session("foo", state={"model": torch.nn.Linear(1, 1)}, **options)
    with session("foo", state={"model": torch.nn.Linear(1, 1)}, save_overwrite=True, **options) as run:
        for _ in run.steps(BATCHES, "5ba"):
            pass
    foo = written()
    assert sorted(path.name for path in (foo.path / "checkpoints").glob("*.pt")) == ["latest-rank0.pt", "model.pt"]
    assert foo.manifest.summary.checkpoints == 1
    assert load_checkpoint(foo.path / "checkpoints" / "model.pt")["timestamp"]["batch"] == 5
    with session("foo", state={"model": torch.nn.Linear(1, 1)}, save_overwrite=True, resume=True, **options) as run:
        assert run.timestamp.batch == 5
