"""A new run starts from another run's checkpoint, with all of it or the weights alone, and says so."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness import session
from harness.errors import CheckpointError, ConfigError, HarnessError, RunDirExistsError
from harness.trainer.callback import Callback

LOSS = "loss/train/total"
SHUFFLED = {"shuffle": True}
BATCHES = [torch.ones(2)] * 4


def with_schedule(make_model: Callable[[], nn.Module]) -> dict[str, Any]:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    return {"model": model, "optimizers": optimizer, "schedulers": schedule}


@pytest.fixture
def train(
    make_trainer: Callable[..., Any], make_loader: Callable[..., Any], make_model: Callable[[], nn.Module]
) -> Callable[..., Any]:
    """Trains a run of this name; what it draws at random before is never the same twice."""

    def run(name: str, max_duration: str, **options: Any) -> Any:
        torch.rand(1000)
        settings = {**with_schedule(make_model), "train_dataloader": make_loader(**SHUFFLED), "save_interval": "1ep"}
        trainer = make_trainer(run_name=name, max_duration=max_duration, **{**settings, **options})
        trainer.fit()
        return trainer

    return run


@pytest.fixture
def parent(train: Callable[..., Any], root: Path) -> Path:
    """The directory of `foo`, with checkpoints of steps 10 and 15."""
    train("foo", "15ba")
    return root / "foo"


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"ep1-ba{step}-rank0.pt"


def content_of(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class Die(Callback):
    """Ends the training in the middle of a step, before anything was saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_backward(self, trainer: Any) -> None:
        if trainer.session.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("place", "step"),
    [("", 15), ("checkpoints/latest-rank0.pt", 15), ("checkpoints/ep1-ba10-rank0.pt", 10)],
    ids=["directory", "link", "file"],
)
def test_a_new_run_goes_on_with_the_numbers_of_the_old_one(
    place: str, step: int, parent: Path, train: Callable[..., Any], written: Callable[..., Any]
) -> None:
    train("whole", "3ep")
    before = content_of(parent)
    trainer = train("bar", "3ep", load_path=parent / place, seed=99)
    assert trainer.state.timestamp.batch == 30
    whole, bar = written("whole"), written("bar")
    later = list(range(step + 1, 31))
    assert bar.by_step(LOSS) == {number: whole.by_step(LOSS)[number] for number in later}
    assert bar.steps() == later
    (attempt,) = bar.manifest.attempts
    assert (attempt.number, attempt.resumed_from_step, attempt.first_step) == (1, step, step + 1)
    found = bar.manifest.parent
    assert (found.run_name, found.step, found.weights_only) == ("foo", step, False)
    assert found.path == str(checkpoint(parent, step).resolve())
    assert found.crc32c in (one.crc32c for one in written("foo").manifest.artifacts)
    assert f"started from all of run 'foo' after step {step}" in bar.text
    assert content_of(parent) == before


def test_a_run_without_a_parent_has_none_on_record(parent: Path, written: Callable[..., Any]) -> None:
    assert written("foo").manifest.parent is None


def test_weights_alone_begin_a_run_at_step_1(
    parent: Path, make_trainer: Callable[..., Any], make_model: Callable[[], nn.Module], written: Callable[..., Any]
) -> None:
    saved = torch.load(checkpoint(parent, 15), weights_only=True)["state"]["model"]
    # Another optimizer, no schedule, a callback more: none of it matters for the weights.
    model = make_model()
    trainer = make_trainer(
        run_name="bar",
        model=model,
        optimizers=torch.optim.AdamW(model.parameters()),
        max_duration="3ba",
        load_path=str(parent),
        load_weights_only=True,
    )
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert trainer.state.timestamp.batch == 0
    trainer.fit()
    assert written("bar").steps() == [1, 2, 3]
    assert written("bar").manifest.attempts[0].resumed_from_step is None
    found = written("bar").manifest.parent
    assert (found.run_name, found.step, found.weights_only) == ("foo", 15, True)


@pytest.mark.parametrize("name", ["model", "net"])
def test_a_plain_state_dict_from_anywhere_is_taken_for_the_model(
    name: str, root: Path, tmp_path: Path, written: Callable[..., Any]
) -> None:
    path, model = tmp_path / "weights.pt", nn.Linear(2, 2)
    source = nn.Linear(2, 2)
    torch.save(source.state_dict(), path)
    state = {name: model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    if name == "model":
        state["other"] = nn.Linear(3, 3)
    with session("foo", root=root, state=state, load_path=path, load_weights_only=True) as run:
        assert torch.equal(model.weight, source.weight)
        assert list(run.steps(BATCHES, "1ep")) == BATCHES
    found = written().manifest.parent
    assert (found.run_name, found.step, found.path, found.weights_only) == (None, None, str(path), True)
    assert len(found.crc32c) == 8


def test_a_loop_of_ones_own_starts_in_the_middle_of_an_epoch(root: Path, make_loader: Callable[..., Any]) -> None:
    def train(name: str, until: str, **options: Any) -> list[Any]:
        model, loader = nn.Linear(4, 3), make_loader(**SHUFFLED)
        with session(name, root=root, state={"model": model}, save_interval="1ep", **options) as run:
            return [features.tolist() for features, _ in run.steps(loader, until)]

    torch.manual_seed(7)
    whole = train("whole", "2ep")
    torch.manual_seed(7)
    first = train("foo", "13ba")
    torch.manual_seed(8)
    assert first + train("bar", "2ep", load_path=root / "foo") == whole


def test_checkpoints_of_a_run_with_its_own_templates_are_found(
    train: Callable[..., Any], root: Path, written: Callable[..., Any]
) -> None:
    train("foo", "7ba", save_folder="{run_name}/deep/saved", save_filename="step{batch:06d}.pt")
    # As after a kill between the rename of the newest one and the list.
    (root / "foo/deep/saved/checkpoints-rank0.json").unlink()
    copy = root.parent / "a copy"
    shutil.move(root / "foo", copy)
    train("bar", "9ba", load_path=copy)
    assert written("bar").steps() == [8, 9]
    assert written("bar").manifest.parent.path == str(copy / "deep/saved/step000007.pt")


@pytest.mark.parametrize("damage", [flip, lambda path: os.truncate(path, path.stat().st_size - 1)])
@pytest.mark.parametrize("listed", [True, False])
def test_a_damaged_file_is_refused_by_name_and_an_older_one_named(
    damage: Callable[[Path], None], listed: bool, parent: Path, train: Callable[..., Any], root: Path
) -> None:
    newest, older = checkpoint(parent, 15), checkpoint(parent, 10)
    if listed:
        damage(newest)
    else:
        newest = newest.rename(parent / "checkpoints" / "mine.pt")
        os.truncate(newest, 1000)
    with pytest.raises(CheckpointError) as caught:
        train("bar", "3ep", load_path=newest)
    assert str(newest) in caught.value.message
    assert caught.value.hint == f"{older}, saved after step 10, is good: give that"
    flip(older)
    with pytest.raises(CheckpointError, match="no older checkpoint in its folder is good"):
        train("bar", "3ep", load_path=newest)
    assert [path.name for path in root.iterdir()] == ["foo"]


def test_of_a_run_the_newest_good_one_is_taken_and_damaged_ones_are_named(
    parent: Path, train: Callable[..., Any], written: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    flip(checkpoint(parent, 15))
    train("bar", "12ba", load_path=parent)
    assert written("bar").manifest.parent.step == 10
    assert "ep1-ba15-rank0.pt is passed over: it has checksum" in caplog.text
    flip(checkpoint(parent, 10))
    with pytest.raises(CheckpointError, match=r"no checkpoint of the run 'foo'.*ep1-ba15.*ep1-ba10"):
        train("baz", "12ba", load_path=parent)


SAVES_FOR_EVER = """
import sys, torch, harness
model = torch.nn.Linear(200, 200)
options = {"save_interval": "1ba", "save_num_checkpoints_to_keep": 1}
with harness.session("foo", root=sys.argv[1], state={"model": model}, **options) as run:
    for _ in run.steps([torch.ones(1)] * 10, "1h"):
        torch.nn.init.constant_(model.weight, run.step)
        if run.step == 3:
            print("going", flush=True)
"""


def test_a_run_that_is_going_on_and_removes_its_checkpoints_can_be_started_from(
    root: Path, start_script: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    start_script(SAVES_FOR_EVER, root).wait_for("going")
    for number in range(30):
        model = nn.Linear(200, 200)
        options = {"load_path": root / "foo", "load_weights_only": number % 2 == 1}
        run = session(f"bar{number}", root=root, state={"model": model}, **options)
        run.directory.release()
        assert run.parent is not None
        assert (model.weight == run.parent.step).all()
    assert "passed over" not in caplog.text


def left_behind(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def test_wrong_paths_are_told_in_words_that_help(
    parent: Path, train: Callable[..., Any], make_trainer: Callable[..., Any], root: Path, tmp_path: Path
) -> None:
    make_trainer(run_name="none", max_duration="1ba", save_interval=None).fit()
    (tmp_path / "link").symlink_to("nowhere.pt")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "text.pt").write_text("no checkpoint")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").mkdir()
    torch.save({"state_dict": nn.Linear(1, 1).state_dict(), "epoch": 3}, tmp_path / "nested.pt")
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "bare.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"format": 99}, tmp_path / "newer.pt")
    whole = torch.load(checkpoint(parent, 15), weights_only=True)
    torch.save({**whole, "run_name": "\x1b[2Jfoo"}, tmp_path / "escape.pt")
    cases: list[tuple[Path, str, str]] = [
        (root / "fooo", "is not there", f"did you mean {root / 'foo'}?"),
        (root / "none", "has no checkpoint to load", "save_interval"),
        (root, "is a folder and no run", str(root / "foo")),
        (parent / "checkpoints", "is a folder and no run", f"the directory of the run, {parent}"),
        (tmp_path / "empty", "is a folder and no run", "such as runs/foo"),
        (tmp_path / "link", "a link to 'nowhere.pt', which is not there", "a checkpoint beside it"),
        (tmp_path / "loop", "cannot be used", "a checkpoint"),
        (parent / "run.json" / "x", "cannot be used", "a checkpoint"),
        (tmp_path / "fifo", "no regular file", ""),
        (tmp_path / "text.pt", "torn or no checkpoint", "torch.load(path, weights_only=True)"),
        (parent / "run.json", "torn or no checkpoint", ""),
        (tmp_path / "nested.pt", "keys 'state_dict', 'epoch'", "torch.save(loaded['state_dict'], 'weights.pt')"),
        (tmp_path / "bare.pt", "holds weights only", "--load-weights-only"),
        (tmp_path / "list.pt", "it is a list", "state_dict"),
        (tmp_path / "newer.pt", "has format 99", "newer"),
        (tmp_path / "escape.pt", "run_name='\\x1b[2Jfoo'", ""),
    ]
    for path, message, hint in cases:
        with pytest.raises(HarnessError) as caught:
            train("bar", "3ep", load_path=path)
        assert message in caught.value.message, path
        assert hint in (caught.value.hint or ""), path
        assert path.name in caught.value.message or path == root, path
    assert left_behind(root) == ["foo", "none"]


def test_options_that_make_no_sense_are_refused(root: Path, tmp_path: Path) -> None:
    state = {"model": nn.Linear(1, 1)}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"load_path": ""}, "load_path=''"),
        ({"load_path": 3, "state": state}, "load_path=3"),
        ({"load_path": b"foo", "state": state}, "load_path=b'foo'"),
        ({"load_path": "a\0b", "state": state}, "embedded null byte"),
        ({"load_path": tmp_path}, "without state="),
        ({"load_weights_only": True, "state": state}, "without load_path"),
    ]
    for options, text in cases:
        with pytest.raises(ConfigError, match=text):
            session("foo", root=root, **options)
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "weights.pt")
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters())
    with pytest.raises(ConfigError, match=r"no torch\.nn\.Module, only optimizer"):
        session(
            "foo", root=root, state={"optimizer": optimizer}, load_path=tmp_path / "weights.pt", load_weights_only=True
        )
    two = {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}
    with pytest.raises(CheckpointError, match="this run has several: a, b"):
        session("foo", root=root, state=two, load_path=tmp_path / "weights.pt", load_weights_only=True)
    assert left_behind(root) == []


@pytest.mark.parametrize("weights_only", [True, False])
def test_another_architecture_is_refused_and_leaves_no_directory(
    weights_only: bool, parent: Path, make_trainer: Callable[..., Any], train: Callable[..., Any], root: Path
) -> None:
    train("old", "2ba")
    before = content_of(root / "old")
    for options in ({"run_name": "bar"}, {"run_name": "old", "overwrite": True}):
        with pytest.raises(CheckpointError) as caught:
            make_trainer(
                model=nn.Linear(4, 3),
                optimizers=None,
                load_path=parent,
                load_weights_only=weights_only,
                **options,
            )
        assert ("state['model'] (Linear) does not take" in str(caught.value)) or "scheduler0" in str(caught.value)
        assert ("model" if weights_only else "load_weights_only=True") in (caught.value.hint or "")
    assert left_behind(root) == ["foo", "old"]
    assert content_of(root / "old") == before  # though it was to be overwritten


def test_names_of_modules_have_to_agree_both_ways(root: Path) -> None:
    def make(name: str, state: dict[str, Any], **options: Any) -> None:
        with session(name, root=root, state=state, save_interval="1ep", **options) as run:
            list(run.steps(BATCHES, "1ep"))

    generator, critic = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
    make("foo", {"generator": generator, "critic": critic, "optimizer": optimizer})
    with pytest.raises(CheckpointError) as caught:
        make("bar", {"generator": generator, "judge": critic}, load_path=root / "foo", load_weights_only=True)
    assert "missing in it: judge; in it but not in this run: critic" in caught.value.message
    with pytest.raises(CheckpointError, match="missing in it: none; in it but not in this run: critic"):
        make("bar", {"generator": generator}, load_path=root / "foo", load_weights_only=True)
    assert left_behind(root) == ["foo"]
    make("bar", {"generator": generator, "critic": critic}, load_path=root / "foo", load_weights_only=True)


def test_weights_that_are_nan_are_refused(root: Path, tmp_path: Path, parent: Path, train: Callable[..., Any]) -> None:
    model = nn.BatchNorm1d(2)
    model.running_mean.fill_(float("nan"))  # a buffer may be what it likes
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    options = {"root": root, "load_path": tmp_path / "weights.pt", "load_weights_only": True}
    session("bar", state={"model": nn.BatchNorm1d(2)}, **options).directory.release()
    with torch.no_grad():
        model.weight[1] = float("nan")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"weights\.pt has NaN in 'weight' of state\['model'\]"):
        session("baz", state={"model": nn.BatchNorm1d(2)}, **options)
    content = torch.load(checkpoint(parent, 15), weights_only=True)
    content["state"]["model"]["0.bias"][0] = float("nan")
    torch.save(content, tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match=r"NaN in '0\.bias'"):
        train("baz", "3ep", load_path=tmp_path / "whole.pt")
    assert left_behind(root) == ["bar", "foo"]


def test_a_checkpoint_of_modules_only_is_taken_for_the_weights_and_for_nothing_else(
    train: Callable[..., Any], root: Path, written: Callable[..., Any]
) -> None:
    train("foo", "15ba", save_weights_only=True)
    with pytest.raises(CheckpointError, match="holds weights only") as caught:
        train("bar", "2ba", load_path=root / "foo")
    assert "load_weights_only=True" in (caught.value.hint or "")
    train("bar", "2ba", load_path=root / "foo", load_weights_only=True)
    assert (written("bar").manifest.parent.run_name, written("bar").manifest.parent.step) == ("foo", 15)


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_malicious_file_is_not_run(
    kind: str, weights_only: bool, parent: Path, train: Callable[..., Any], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {canary}",)

    path = tmp_path / "weights.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload()))
    else:
        torch.save({"format": 1, "model": Payload()}, path, _use_new_zipfile_serialization=kind == "zip")
    for place in (path, parent / "checkpoints" / "ep2-ba20-rank0.pt"):
        if place != path:
            shutil.copy(path, place)
        with pytest.raises(CheckpointError, match="is not loaded"):
            train("bar", "3ep", load_path=place, load_weights_only=weights_only)
    train("bar", "3ep", load_path=parent, load_weights_only=weights_only)  # it is passed over
    assert not canary.exists()
    with contextlib.suppress(Exception):  # the control: the file is as bad as it says
        torch.load(path, weights_only=False)
    assert canary.exists()


def test_a_torch_that_is_not_safe_is_refused(
    parent: Path, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1+cpu"))
    with pytest.raises(CheckpointError, match=r"2\.9\.1\+cpu.*CVE-2026-24747"):
        train("bar", "3ep", load_path=parent)


def test_on_resume_the_runs_own_checkpoint_wins(
    parent: Path, train: Callable[..., Any], written: Callable[..., Any]
) -> None:
    train("bar", "18ba", load_path=parent, resume="auto")
    before = written("bar").manifest.parent
    shutil.rmtree(parent)  # nobody needs it any more
    for resume, until in ((True, "20ba"), ("auto", "22ba")):
        train("bar", until, load_path=parent, resume=resume)
    assert written("bar").steps() == list(range(16, 23))
    assert [one.resumed_from_step for one in written("bar").manifest.attempts] == [15, 18, 20]
    assert written("bar").manifest.parent == before
    assert written("bar").text.count("is not used: the run goes on from its own checkpoint") == 2


@pytest.mark.parametrize("again", ["load_path", "record"])
@pytest.mark.parametrize("weights_only", [True, False])
def test_a_run_that_died_before_its_first_checkpoint_starts_from_its_parent_again(
    again: str, weights_only: bool, parent: Path, train: Callable[..., Any], written: Callable[..., Any]
) -> None:
    load = {"load_path": parent, "load_weights_only": weights_only}
    first = 1 if weights_only else 16
    train("whole", f"{first + 4}ba", **load)
    with pytest.raises(KeyboardInterrupt):
        train("bar", "3ep", callbacks=[Die(first + 3)], save_interval="100ba", **load)
    assert written("bar").checkpoints() == []
    train("bar", f"{first + 4}ba", resume=True, **(load if again == "load_path" else {}))
    assert written("bar").by_step(LOSS) == written("whole").by_step(LOSS)
    assert written("bar").steps() == list(range(first, first + 5))
    assert written("bar").manifest.parent == written("whole").manifest.parent
    assert len(written("bar").manifest.attempts) == 2


def test_a_parent_that_has_changed_is_not_taken_for_the_one_on_record(
    parent: Path, train: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    shutil.copy(checkpoint(parent, 10), path)
    load = {"load_path": path}
    with pytest.raises(KeyboardInterrupt):
        train("bar", "3ep", callbacks=[Die(13)], save_interval="100ba", **load)
    shutil.copy(checkpoint(parent, 15), path)
    with pytest.raises(CheckpointError, match="whose content has changed since") as caught:
        train("bar", "3ep", resume=True)
    assert "--load-path" in (caught.value.hint or "")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be loaded: load_path='.*weights\.pt' is not there"):
        train("bar", "3ep", resume=True)


def test_a_run_cannot_start_from_itself_and_an_existing_one_is_not_touched(
    parent: Path, train: Callable[..., Any], make_model: Callable[[], nn.Module], root: Path
) -> None:
    before = content_of(parent)
    for options in ({}, {"overwrite": True}):
        for path in (parent, checkpoint(parent, 10), parent / "checkpoints" / "latest-rank0.pt"):
            with pytest.raises(ConfigError, match="is the run 'foo' itself"):
                train("foo", "3ep", load_path=path, **options)
    assert content_of(parent) == before
    train("bar", "2ba")
    parts = with_schedule(make_model)
    weights = [parameter.clone() for parameter in parts["model"].parameters()]
    with pytest.raises(RunDirExistsError):
        train("bar", "3ep", load_path=parent, **parts)
    assert all(torch.equal(*pair) for pair in zip(weights, parts["model"].parameters(), strict=True))


def test_the_command_loads_records_and_shows(tmp_path: Path) -> None:
    def harness(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "harness", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    training = ("--logger", "none", "--seed", "1", "--save-interval", "5ba")
    assert harness("train", "foo", "--max-duration", "5ba", *training).returncode == 0
    whole = harness("train", "bar", "--max-duration", "6ba", "--load-path", "runs/foo", *training)
    assert whole.returncode == 0, whole.stderr
    assert "loaded all of run 'foo' after step 5" in whole.stderr
    weights = ("--load-path", "runs/foo/checkpoints/latest-rank0.pt", "--load-weights-only")
    assert harness("train", "baz", "--max-duration", "1ba", *weights, *training).returncode == 0
    path = "runs/foo/checkpoints/ep0-ba5-rank0.pt"
    assert f"foo after step 5, all of it ({path})" in harness("show", "bar").stdout
    assert f"foo after step 5, weights only ({path})" in harness("show", "baz").stdout
    assert '"weights_only": true' in harness("show", "baz", "--json").stdout
    assert "parent" not in harness("show", "foo").stdout
    nothing = harness("train", "done", "--max-duration", "5ba", "--load-path", "runs/foo", *training)
    assert nothing.returncode == 0
    assert "nothing was trained" in nothing.stderr
    wrong = harness("train", "new", "--load-path", "runs/fo", *training)
    assert wrong.returncode == 2
    assert "did you mean runs/foo?" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert not (tmp_path / "runs/new").exists()
