"""A resumed run goes on where its newest checkpoint was taken, to the same numbers as a run that was never stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import session
from harness.errors import CheckpointError, RunDirError, RunDirExistsError
from harness.trainer.callback import Callback

LOSS = "loss/train/total"
SHUFFLED = {"shuffle": True}


class Die(Callback):
    """Ends the training in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_backward(self, trainer: Any) -> None:
        if trainer.session.step == self.step:
            raise ZeroDivisionError(f"in step {self.step}")


class Counts(Callback):
    """A callback with a state of its own."""

    def __init__(self) -> None:
        self.count = 0

    def batch_end(self, trainer: Any) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def with_schedule(make_model: Callable[[], torch.nn.Module]) -> dict[str, Any]:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    return {"model": model, "optimizers": optimizer, "schedulers": schedule}


@pytest.fixture
def uninterrupted(
    make_trainer: Callable[..., Any], make_loader: Callable[..., Any], make_model: Callable[..., Any], written: Any
) -> dict[int, float]:
    """The losses of a run of 3 epochs that nothing stopped."""
    make_trainer(
        **with_schedule(make_model),
        train_dataloader=make_loader(**SHUFFLED),
        max_duration="3ep",
        run_name="whole",
        save_interval="1ep",
    ).fit()
    losses: dict[int, float] = written("whole").by_step(LOSS)
    assert len(losses) == 30
    return losses


@pytest.mark.parametrize(
    ("save_interval", "dies_in", "goes_on_after"),
    [("1ep", 17, 10), ("1ep", 11, 10), ("4ba", 17, 16), ("4ba", 21, 20), ("1ba", 2, 1), ("25sp", 29, 25)],
)
def test_a_run_that_died_ends_with_the_numbers_of_one_that_did_not(
    save_interval: str,
    dies_in: int,
    goes_on_after: int,
    uninterrupted: dict[int, float],
    make_trainer: Callable[..., Any],
    make_loader: Callable[..., Any],
    make_model: Callable[..., Any],
    written: Callable[..., Any],
) -> None:
    options = {"max_duration": "3ep", "save_interval": save_interval}
    with pytest.raises(ZeroDivisionError):
        make_trainer(
            **with_schedule(make_model),
            train_dataloader=make_loader(**SHUFFLED),
            callbacks=[Die(dies_in)],
            **options,
        ).fit()
    foo = written()
    assert foo.status == "failed"
    assert foo.steps() == list(range(1, dies_in))

    torch.rand(1000)  # another process would have other random numbers
    trainer = make_trainer(
        **with_schedule(make_model), train_dataloader=make_loader(**SHUFFLED), resume=True, seed=99, **options
    )
    assert trainer.state.timestamp.batch == goes_on_after
    trainer.fit()
    assert foo.by_step(LOSS) == uninterrupted
    assert foo.steps() == [line["step"] for line in foo.lines("metrics") if LOSS in line] == list(range(1, 31))
    assert [line["epoch"] for line in foo.lines("steps")] == [0] * 10 + [1] * 10 + [2] * 10
    first, second = foo.manifest.attempts
    assert (first.status, second.status) == ("failed", "finished")
    assert (second.resumed_from_step, second.first_step, second.last_step) == (goes_on_after, goes_on_after + 1, 30)


def test_a_finished_run_can_be_made_longer(
    uninterrupted: dict[int, float],
    make_trainer: Callable[..., Any],
    make_loader: Callable[..., Any],
    make_model: Callable[..., Any],
    written: Callable[..., Any],
) -> None:
    for duration, resume in (("15ba", False), ("2ep", True), ("3ep", True)):
        make_trainer(
            **with_schedule(make_model),
            train_dataloader=make_loader(**SHUFFLED),
            max_duration=duration,
            resume=resume,
            save_interval="1ep",
        ).fit()
    assert written().by_step(LOSS) == uninterrupted
    assert [attempt.status for attempt in written().manifest.attempts] == ["finished"] * 3
    names = ("ep1-ba10", "ep1-ba15", "ep2-ba20", "ep3-ba30")
    assert written().checkpoints() == [f"{name}-rank0.pt" for name in names]


def test_resuming_a_finished_run_trains_nothing_and_says_finished(
    make_trainer: Callable[..., Any], make_model: Callable[..., Any], written: Callable[..., Any]
) -> None:
    make_trainer(save_interval="1ep").fit()
    trainer = make_trainer(resume=True, save_interval="1ep")
    trainer.fit()
    assert trainer.state.timestamp.batch == 10
    assert written().steps() == list(range(1, 11))
    assert written().status == "finished"


def test_callbacks_get_their_own_state_back(make_trainer: Callable[..., Any], written: Callable[..., Any]) -> None:
    one, two = Counts(), Counts()
    two.count = 100
    with pytest.raises(ZeroDivisionError):
        make_trainer(callbacks=[one, Die(8), two], save_interval="3ba").fit()
    again, other = Counts(), Counts()
    trainer = make_trainer(callbacks=[again, Die(99), other], save_interval="3ba", resume=True)
    assert (trainer.state.timestamp.batch, again.count, other.count) == (6, 6, 106)
    trainer.fit()
    assert (again.count, other.count) == (10, 110)


def test_the_scaler_is_restored(make_trainer: Callable[..., Any]) -> None:
    options = {"precision": "amp_fp16", "save_interval": "5ba"}
    make_trainer(max_duration="5ba", **options).fit()
    trainer = make_trainer(max_duration="10ba", resume=True, **options)
    assert trainer._parts.precision.scaler.state_dict()["_growth_tracker"] == 5


def test_auto_starts_fresh_where_there_is_nothing_and_goes_on_where_there_is(
    make_trainer: Callable[..., Any], written: Callable[..., Any]
) -> None:
    first = make_trainer(resume="auto", max_duration="4ba", save_interval="1ep")
    assert first.state.timestamp.batch == 0
    first.fit()
    second = make_trainer(resume="auto", max_duration="8ba", save_interval="1ep")
    assert second.state.timestamp.batch == 4
    second.fit()
    assert written().steps() == list(range(1, 9))


def test_what_was_logged_after_the_checkpoint_is_cut_from_every_file(
    make_trainer: Callable[..., Any], written: Callable[..., Any], root: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(ZeroDivisionError):
        make_trainer(callbacks=[Die(9)], save_interval="3ba", loggers=["tensorboard"]).fit()
    make_trainer(resume=True, save_interval="3ba", loggers=["tensorboard"]).fit()
    foo = written()
    assert foo.steps() == [line["step"] for line in foo.lines("metrics")] == list(range(1, 11))
    board = EventAccumulator(str(root / "foo"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in board.Scalars(LOSS)] == list(range(1, 11))


def test_a_trace_keeps_its_global_step_after_a_resume(
    make_trainer: Callable[..., Any], written: Callable[..., Any]
) -> None:
    from harness.capture.recipe import Recipe
    from harness.capture.schedule import Schedule
    from harness.trace.reader import load
    from harness.trace.spans import profiler_steps

    recipe = Recipe(name="own", schedule=Schedule(wait=3, warmup=1, active=1, repeat=0))
    with pytest.raises(ZeroDivisionError):
        make_trainer(callbacks=[Die(8)], save_interval="6ba", profile=recipe).fit()
    make_trainer(resume=True, save_interval="6ba", profile=recipe).fit()
    recorded = [step.step for path in written().traces() for step in profiler_steps(load(path))]
    assert recorded == [5, 10]


def test_an_existing_run_is_not_touched_and_the_three_ways_on_are_named(
    make_trainer: Callable[..., Any], written: Callable[..., Any]
) -> None:
    make_trainer().fit()

    def files() -> dict[Path, int]:
        paths = (path for path in written().path.rglob("*") if path.name != ".lock")
        return {path: path.stat().st_mtime_ns for path in paths}

    before = files()
    with pytest.raises(RunDirExistsError, match=r"'foo'.*finished") as caught:
        make_trainer()
    for way in ("resume=True", "overwrite=True", "another name, such as foo-2"):
        assert way in str(caught.value)
    assert files() == before


def test_overwrite_starts_from_nothing(make_trainer: Callable[..., Any], written: Callable[..., Any]) -> None:
    make_trainer(max_duration="2ep", save_interval="1ep").fit()
    make_trainer(max_duration="3ba", overwrite=True).fit()
    assert written().steps() == [1, 2, 3]
    assert written().checkpoints() == []
    assert len(written().manifest.attempts) == 1


def test_there_is_nothing_to_resume(make_trainer: Callable[..., Any], root: Path) -> None:
    with pytest.raises(RunDirError, match="no run 'foo'.*to resume"):
        make_trainer(resume=True)
    assert not root.exists()


def test_another_model_cannot_be_resumed_and_the_run_stays_as_it_was(
    make_trainer: Callable[..., Any], written: Callable[..., Any]
) -> None:
    make_trainer(save_interval="1ep").fit()
    before = (written().path / "run.json").read_bytes()
    with pytest.raises(CheckpointError, match="'model'.*does not take"):
        make_trainer(model=torch.nn.Linear(4, 3), resume=True, save_interval="1ep")
    assert (written().path / "run.json").read_bytes() == before
    make_trainer(resume=True, save_interval="1ep", max_duration="2ep").fit()
    assert written().steps() == list(range(1, 21))


def test_a_damaged_checkpoint_is_passed_over_by_name(
    make_trainer: Callable[..., Any], written: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(save_interval="4ba").fit()
    newest = written().path / "checkpoints" / "ep1-ba10-rank0.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(resume=True, save_interval="4ba")
    assert trainer.state.timestamp.batch == 8
    assert any("ep1-ba10-rank0.pt is passed over" in record.getMessage() for record in caplog.records)
    trainer.fit()
    assert written().steps() == list(range(1, 11))


def test_a_run_whose_checkpoints_are_all_damaged_keeps_what_it_has(
    make_trainer: Callable[..., Any], written: Callable[..., Any]
) -> None:
    make_trainer(save_interval="2ba").fit()
    foo = written()
    for path in (foo.path / "checkpoints").glob("ep*.pt"):
        path.write_bytes(path.read_bytes()[:-100])
    for resume in (True, "auto"):
        with pytest.raises(CheckpointError, match="has no checkpoint that is whole: ep0-ba10-rank0.pt has") as caught:
            make_trainer(resume=resume)
        assert "and 2 more" in caught.value.message
        assert "--overwrite" in str(caught.value)
    assert written().steps() == list(range(1, 11))
    assert len(written().checkpoints()) == 5
    make_trainer(overwrite=True).fit()


def test_other_data_cannot_be_resumed_in_the_middle_of_an_epoch(
    make_trainer: Callable[..., Any], make_loader: Callable[..., Any], written: Callable[..., Any]
) -> None:
    make_trainer(max_duration="4ba", save_interval="1ep").fit()
    trainer = make_trainer(train_dataloader=make_loader(7), max_duration="2ep", resume=True, save_interval="1ep")
    with pytest.raises(CheckpointError, match="7 batches and had 10"):
        trainer.fit()
    assert written().status == "failed"


def test_a_session_without_state_cannot_take_a_checkpoint(make_trainer: Callable[..., Any], root: Path) -> None:
    make_trainer(save_interval="1ep").fit()
    with pytest.raises(CheckpointError, match="no state= to put it into"):
        session("foo", root=root, resume=True)


def test_a_run_without_a_checkpoint_starts_again_and_says_so(
    root: Path, written: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    batches = [torch.ones(2)] * 4
    with pytest.raises(ZeroDivisionError), session("foo", root=root) as run:
        for _ in run.steps(batches, "1ep"):
            run.log({"attempt": 1})
            if run.step == 3:
                raise ZeroDivisionError
    with caplog.at_level(logging.WARNING), session("foo", root=root, resume=True) as run:
        for _ in run.steps(batches, "1ep"):
            run.log({"attempt": 2})
    assert "starts again at step 1" in caplog.text
    assert written().steps() == [1, 2, 3, 4]
    assert written().values("attempt") == [2, 2, 2, 2]


def test_a_loop_of_ones_own_is_resumed_in_its_epoch(
    root: Path, make_loader: Callable[..., Any], written: Callable[..., Any]
) -> None:
    def train(until: str, resume: bool, name: str) -> list[Any]:
        torch.manual_seed(7 if not resume else 8)
        model = torch.nn.Linear(4, 3)
        loader, seen = make_loader(**SHUFFLED), []
        with session(name, root=root, state={"model": model}, save_interval="3ba", resume=resume) as run:
            for features, _ in run.steps(loader, until):
                seen.append(features.tolist())
                with torch.no_grad():
                    model.weight += torch.rand(())
                run.log({"weight": model.weight.sum()})
        return seen

    whole = train("2ep", False, "whole")
    assert train("13ba", False, "foo") + train("2ep", True, "foo") == whole
    assert written("foo").values("weight") == written("whole").values("weight")
