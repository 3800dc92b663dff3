"""Whatever is asked for wrongly is refused in words that help, before anything is left on the disk."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import session
from harness.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    HarnessError,
    LossError,
    RecipeError,
    RunDirError,
    RunNameError,
    TemplateError,
)
from harness.trainer.callback import Callback

BATCHES = [torch.ones(4, 2)] * 4
GOOD = (torch.zeros(4, 4), torch.zeros(4, dtype=torch.long))


def left_behind(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


NAMES = {
    "": "empty",
    "../x": "",
    "/tmp/x": "",
    "foo/bar": "",
    "a\0b": "",
    "a\nb": "",
    "x" * 300: "128",
    "rocket-🚀": "",
    ".": "",
    "..": "",
    "-x": "",
    ".hidden": "",
    "a b": "",
    "a\\b": "",
    "run.7": "",
    "con": "",
    "{rank}": "",
}


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_bad_name_is_refused_with_its_source(
    name: str, root: Path, make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunNameError, match="run_name=") as caught:
        make_trainer(run_name=name)
    assert caught.value.hint
    assert NAMES[name] in str(caught.value)
    assert left_behind(root) == []
    if "\0" not in name:
        monkeypatch.setenv("RUN_NAME", name)
        with pytest.raises(RunNameError, match="RUN_NAME"):
            session(root=root)
        assert left_behind(root) == []


@pytest.mark.parametrize("name", [3, None.__class__, b"foo", ["foo"]], ids=repr)
def test_a_name_that_is_no_text_is_refused(name: Any, root: Path) -> None:
    with pytest.raises(RunNameError):
        session(name, root=root)
    assert left_behind(root) == []


TEMPLATES = [
    "{run_nmae}",
    "{batch.__class__}",
    "{rank!r}",
    "{batch[0]}",
    "{}",
    "{0}",
    "{batch:>99999999}",
    "{run_name:06d}",
    "../x",
    "/tmp/x",
    "",
    "a\0b",
    "a\nb",
    "{run_name}/" + "x" * 600,
    "{run_name}/../x",
    "{run_name",
    "rocket-🚀",
]


@pytest.mark.parametrize("option", ["save_folder", "save_filename", "save_latest_filename", "trace_filename"])
@pytest.mark.parametrize("template", TEMPLATES, ids=repr)
def test_a_bad_template_names_its_option(
    template: str, option: str, root: Path, make_trainer: Callable[..., Any]
) -> None:
    text = f"{template}/{{batch}}.pt.trace.json.gz" if option == "trace_filename" else template
    if option == "trace_filename" and template in ("", "rocket-🚀"):
        text = f"{{run_name}}/{template}\x7f{{batch}}.pt.trace.json.gz"
    with pytest.raises(ConfigError, match=option):
        make_trainer(**{option: text})
    assert left_behind(root) == []


def test_an_unknown_field_names_the_nearest_and_the_allowed(root: Path) -> None:
    with pytest.raises(TemplateError) as caught:
        session("foo", root=root, save_folder="{run_nmae}/checkpoints")
    text = str(caught.value)
    for part in ("save_folder", "run_nmae", "run_name", "world_size", "hostname"):
        assert part in text


def test_templates_that_would_overwrite_each_other_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="batch"):
        session("foo", root=root, trace_filename="{run_name}/traces/rank{rank}.pt.trace.json.gz")
    with pytest.raises(ConfigError, match="save_filename"):
        session("foo", root=root, save_filename="checkpoint.pt")
    assert left_behind(root) == []


BAD_RECIPES = {
    "[schedule]\nactive = 0\n": "schedule.active = 0",
    "[schedule]\nwiat = 3\nactive = 1\n": "wait",
    "[shedule]\nactive = 1\n": "schedule",
    "[schedule]\nactive = -1\n": "-1",
    "[schedule]\nactive = 1000\n": "64",
    "[schedule]\nactive = 'x'\n": "active",
    "not toml": "toml",
}


@pytest.mark.parametrize(("text", "expected"), BAD_RECIPES.items(), ids=repr)
def test_a_bad_recipe_names_its_file_and_key(
    text: str, expected: str, tmp_path: Path, root: Path, make_trainer: Callable[..., Any]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"(?is)mine.*" + expected):
        make_trainer(profile=path)
    assert left_behind(root) == []


def test_an_unknown_recipe_lists_the_known(root: Path, make_trainer: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        make_trainer(profile="qiuck")
    for name in ("memory", "off", "quick", "stacks", "steady"):
        assert name in str(caught.value)
    assert left_behind(root) == []


def accuracy(outputs: Any, batch: Any) -> torch.Tensor:
    return torch.ones(())


PLATEAU = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD(torch.nn.Linear(1, 1).parameters()))
OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"max_duration": "2 epochs"}, "max_duration='2 epochs'"),
    ({"max_duration": ""}, "max_duration=''"),
    ({"max_duration": "0ep"}, "max_duration=0ep"),
    ({"max_duration": -1}, "max_duration=-1ep"),
    ({"max_duration": "1.5ep"}, "max_duration='1.5ep'"),
    ({"max_duration": "0.5dur"}, "max_duration=0.5dur"),
    ({"max_duration": 2.5}, "max_duration=2.5"),
    ({"max_duration": True}, "max_duration=True"),
    ({"max_duration": None}, "max_duration=None"),
    ({"max_duration": "1000tok"}, "get_num_tokens"),
    ({"eval_interval": "often"}, "eval_interval='often'"),
    ({"save_interval": "1eq"}, "save_interval='1eq'"),
    ({"save_interval": "2dur"}, "save_interval=2dur"),
    ({"log_interval": "0ba"}, "log_interval=0ba"),
    ({"save_num_checkpoints_to_keep": 0}, "save_num_checkpoints_to_keep=0"),
    ({"save_num_checkpoints_to_keep": "3"}, "save_num_checkpoints_to_keep='3'"),
    ({"precision": "fp8"}, "precision='fp8'"),
    ({"device": "cuda:77"}, "device='cuda:77'"),
    ({"device": "gpu"}, "device='gpu'"),
    ({"seed": -1}, "seed=-1"),
    ({"seed": 1.5}, "seed=1.5"),
    ({"nan_policy": "ignore"}, "nan_policy='ignore'"),
    ({"microbatch_size": 0}, "microbatch_size=0"),
    ({"grad_clip_norm": 0.0}, "grad_clip_norm=0.0"),
    ({"step_schedulers": "never"}, "step_schedulers='never'"),
    ({"resume": "maybe"}, "resume='maybe'"),
    ({"resume": True, "overwrite": True}, "resume"),
    ({"run_name": None, "resume": True}, "resume without a run name"),
    ({"run_name": None, "overwrite": True}, "overwrite without a run name"),
    ({"loggers": ["tensorbord"]}, "tensorboard"),
    ({"loggers": ["tensorboard", "tensorboard"]}, "given twice"),
    ({"loggers": "tensorboard"}, "not a list"),
    ({"loggers": [object()]}, "no logger"),
    ({"loggers": ["no_such_package:Logger"]}, "no_such_package"),
    ({"loss_fn": None}, "there is no loss"),
    ({"model": torch.nn.Linear}, "model=<class"),
    ({"model": lambda inputs: inputs}, "model=<function"),
    ({"optimizers": "adam"}, "optimizers='adam'"),
    ({"optimizers": []}, "optimizers is empty"),
    ({"schedulers": "cosine"}, "scheduler"),
    ({"schedulers": PLATEAU}, "ReduceLROnPlateau"),
    ({"callbacks": Callback()}, "callbacks="),
    ({"callbacks": [Callback]}, "no callback"),
    ({"callbacks": [3]}, "no callback"),
    ({"metrics": 3}, "metrics=3"),
    ({"metrics": {"accuracy": 0.5}, "eval_dataloader": [torch.ones(2, 4)]}, "metrics['accuracy']=0.5"),
    ({"metrics": {"loss": accuracy}, "eval_dataloader": [torch.ones(2, 4)]}, "metrics['loss']"),
    ({"device": "meta"}, "device='meta'"),
    ({"train_dataloader": 7}, "cannot be iterated"),
    ({"train_dataloader": []}, "train_dataloader is empty: its length is 0"),
    ({"eval_dataloader": 7}, "eval_dataloader is a int, which cannot be iterated"),
    ({"eval_dataloader": []}, "eval_dataloader is empty: its length is 0"),
    ({"optimizers": [None]}, "optimizers=None is a NoneType"),
    ({"max_duration": "9" * 400 + "sec"}, "too long a duration"),
    ({"max_duration": "9" * 400 + "h"}, "too long a duration"),
    ({"max_duration": "9" * 5000 + "ba"}, "too long a duration"),
    ({"max_duration": 10**400}, "too long a duration"),
    ({"trace_filename": None}, "trace_filename=None"),
    ({"trace_filename": "traces/{batch}.pt.trace.json.gz"}, "trace_filename="),
    ({"trace_filename": "{run_name}-x/{batch}.pt.trace.json.gz"}, "does not lie in the directory of the run"),
    ({"trace_filename": "{run_name}/run.json/{batch}.pt.trace.json.gz"}, "the harness's own"),
    ({"trace_filename": "{run_name}/steps-rank{rank}.jsonl/{batch}.pt.trace.json.gz"}, "the harness's own"),
    ({"save_folder": "x{run_name}"}, "save_folder='x{run_name}' does not lie in the directory of the run"),
    ({"save_folder": "{run_name}/run.json"}, "the harness's own"),
    ({"save_folder": "{run_name}", "save_latest_filename": "run.json"}, "the harness's own"),
    ({"save_folder": "{run_name}", "save_latest_filename": "steps-rank{rank}.jsonl"}, "the harness's own"),
    ({"save_folder": "{run_name}", "save_latest_filename": "metrics-rank{rank}.jsonl"}, "the name of a log"),
    ({"save_folder": "{run_name}", "save_filename": "logs-rank{batch}.txt"}, "the name of a log"),
]


@pytest.mark.parametrize(("options", "expected"), OPTIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_an_option_that_cannot_work_is_named_before_anything_is_made(
    options: dict[str, Any], expected: str, root: Path, make_trainer: Callable[..., Any]
) -> None:
    with pytest.raises(HarnessError) as caught:
        make_trainer(**options)
    assert expected in str(caught.value)
    assert left_behind(root) == []


def test_metrics_that_will_never_be_computed_are_told(
    make_trainer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(metrics={"accuracy": accuracy})
    assert "there is no eval_dataloader" in caplog.text


def test_an_option_that_is_not_there_is_named(root: Path, make_trainer: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="run_nmae"):
        make_trainer(run_nmae="foo")
    assert left_behind(root) == []


def test_a_session_cannot_save_what_has_no_state(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"state\['lr'\] is a float"):
        session("foo", root=root, state={"lr": 0.1}, save_interval="1ep")
    with pytest.raises(ConfigError, match="without state="):
        session("foo", root=root, save_interval="1ep")
    assert left_behind(root) == []


def test_torchrun_is_refused_in_this_version(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 1, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match="WORLD_SIZE=4"):
        session("foo", root=root)
    assert left_behind(root) == []


class TestDataloaders:
    def test_one_that_is_empty_without_saying_so(
        self, make_trainer: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        with pytest.raises(DataError, match="no batch in epoch 1"):
            make_trainer(train_dataloader=(x for x in ())).fit()
        assert written().status == "failed"
        assert written().steps() == []

    def test_one_that_raises_in_the_middle(self, make_trainer: Callable[..., Any], written: Callable[..., Any]) -> None:
        def broken() -> Iterator[Any]:
            yield from [GOOD] * 3
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad file")

        with pytest.raises(UnicodeDecodeError) as caught:
            make_trainer(train_dataloader=broken(), save_interval="1ep").fit()
        assert caught.value.__notes__ == ["while the dataloader loaded the batch of step 4"]
        assert written().status == "failed"
        assert written().steps() == [1, 2, 3]
        assert written().checkpoints() == ["ep0-ba3-rank0.pt"]

    def test_one_that_cannot_even_be_opened(
        self, make_trainer: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        class Closed:
            def __iter__(self) -> Any:
                raise ConnectionError("the store is gone")

        with pytest.raises(ConnectionError, match="the store is gone"):
            make_trainer(train_dataloader=Closed()).fit()
        assert written().status == "failed"

    @pytest.mark.parametrize("batch", ["text", ["a", "b"], {"ids": [1, 2]}, 7, None], ids=repr)
    def test_one_without_tensors(
        self, batch: Any, make_trainer: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        with pytest.raises(DataError, match=f"yielded a {type(batch).__name__} that holds no tensor\nhint"):
            make_trainer(train_dataloader=[batch] * 3).fit()
        assert written().steps() == []
        assert written().manifest.attempts[0].error.startswith("DataError: the dataloader yielded a")

    def test_samples_that_cannot_be_counted(self, root: Path) -> None:
        with pytest.raises(DataError, match="get_num_samples="), session("foo", root=root) as run:
            for _ in run.steps([{"text": "a"}] * 3, "100sp"):
                pass

    def test_a_count_that_raises_is_the_users_error(self, root: Path, written: Callable[..., Any]) -> None:
        with pytest.raises(ZeroDivisionError), session("foo", root=root) as run:
            for _ in run.steps(BATCHES, "100tok", get_num_tokens=lambda batch: 1 // 0):
                pass
        assert written().steps() == []
        assert written().status == "failed"

    def test_microbatches_of_uneven_tensors(self, make_trainer: Callable[..., Any]) -> None:
        with pytest.raises(DataError, match="4 and 3 samples"):
            make_trainer(train_dataloader=[(torch.zeros(4, 4), torch.zeros(3).long())], microbatch_size=2).fit()

    def test_an_eval_dataloader_that_is_empty(self, make_trainer: Callable[..., Any]) -> None:
        with pytest.raises(DataError, match="eval_dataloader yielded no batch"):
            make_trainer(eval_dataloader=(x for x in ())).fit()

    def test_a_length_that_raises_is_told_before_anything_is_made(
        self, make_trainer: Callable[..., Any], root: Path
    ) -> None:
        class Lost(list[Any]):
            def __len__(self) -> int:
                raise ConnectionError("the store is gone")

        with pytest.raises(DataError, match="length of train_dataloader.*the store is gone"):
            make_trainer(train_dataloader=Lost([GOOD]))
        assert left_behind(root) == []


class TestLosses:
    @pytest.mark.parametrize(
        ("loss_fn", "expected"),
        [
            (lambda outputs, batch: outputs, r"shape \(4, 3\), expected a scalar"),
            (lambda outputs, batch: outputs.mean(0), r"shape \(3,\)"),
            (lambda outputs, batch: outputs.mean().item(), "is a float, expected a tensor"),
            (lambda outputs, batch: None, "is a NoneType"),
            (lambda outputs, batch: outputs.mean().detach(), "no gradient"),
            (lambda outputs, batch: torch.tensor(1.0), "no gradient"),
            (lambda outputs, batch: outputs.mean() * 1j, "complex"),
        ],
    )
    def test_one_that_cannot_be_trained_on(
        self, loss_fn: Any, expected: str, make_trainer: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        with pytest.raises(LossError, match=expected) as caught:
            make_trainer(loss_fn=loss_fn).fit()
        assert caught.value.hint
        assert written().steps() == []

    def test_one_that_is_a_tensor_in_the_first_step_only(
        self, make_trainer: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        seen: list[int] = []

        def loss_fn(outputs: Any, batch: Any) -> Any:
            seen.append(len(seen))
            return outputs.mean() if len(seen) < 3 else 0.5

        with pytest.raises(LossError, match="is a float, expected a tensor"):
            make_trainer(loss_fn=loss_fn).fit()
        assert written().steps() == [1, 2]

    @pytest.mark.parametrize("interval", ["1ba", None])
    def test_nan_on_a_device_is_in_no_checkpoint_and_no_finished_run(
        self,
        interval: str | None,
        make_trainer: Callable[..., Any],
        written: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The branch for devices, with tensors on the CPU and a device that is far behind."""

        monkeypatch.setattr("harness.loggers.late.LateNumber.arrived", False)
        monkeypatch.setattr("harness.trainer.train_step.to_device", lambda batch, device: batch)
        trainer_of: list[Any] = []
        trainer_of.append(
            make_trainer(
                loss_fn=self._nan_in_step_3(trainer_of), nan_policy="stop", save_interval=interval, max_duration="4ba"
            )
        )
        trainer_of[0]._parts = replace(trainer_of[0]._parts, device=SimpleNamespace(type="cuda"))
        with pytest.raises(LossError, match="the loss of step 3 is nan"):
            trainer_of[0].fit()
        assert written().status == "failed"
        expected = ["ep0-ba1-rank0.pt", "ep0-ba2-rank0.pt"] if interval else []
        assert written().checkpoints() == expected

    @staticmethod
    def _nan_in_step_3(trainer_of: list[Any]) -> Any:
        def loss_fn(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
            loss = outputs.square().mean()
            return loss * float("nan") if trainer_of[0].session.step == 3 else loss

        return loss_fn

    def test_nan_warns_and_goes_on(
        self, make_trainer: Callable[..., Any], written: Callable[..., Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        trainer_of: list[Any] = []
        trainer_of.append(make_trainer(loss_fn=self._nan_in_step_3(trainer_of)))
        with caplog.at_level(logging.WARNING):
            trainer_of[0].fit()
        assert "the loss of step 3 is nan" in caplog.text
        assert written().steps() == list(range(1, 11))
        assert written().by_step("loss/train/total")[3] == "NaN", "valid JSON, in the spelling of protobuf"

    def test_nan_stops_with_the_weights_of_the_step_before(
        self, make_trainer: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        weights: list[torch.Tensor] = []

        class Keeps(Callback):
            def batch_end(self, trainer: Any) -> None:
                weights.append(trainer.state.model[0].weight.detach().clone())

        trainer_of: list[Any] = []
        trainer_of.append(
            make_trainer(
                loss_fn=self._nan_in_step_3(trainer_of), nan_policy="stop", callbacks=[Keeps()], save_interval="2ba"
            )
        )
        with pytest.raises(LossError, match="the loss of step 3 is nan and nan_policy is 'stop'"):
            trainer_of[0].fit()
        assert torch.equal(trainer_of[0].state.model[0].weight, weights[1])
        assert written().steps() == [1, 2]
        assert written().checkpoints() == ["ep0-ba2-rank0.pt"]
        assert written().status == "failed"


class TestDisk:
    def test_a_root_that_is_a_file(self, root: Path, make_trainer: Callable[..., Any]) -> None:
        root.write_text("")
        with pytest.raises(RunDirError, match=str(root)) as caught:
            make_trainer()
        assert caught.value.hint

    @pytest.mark.parametrize("kind", ["file", "folder", "link"])
    def test_a_name_that_is_something_else_already(
        self, kind: str, root: Path, tmp_path: Path, make_trainer: Callable[..., Any]
    ) -> None:
        root.mkdir()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        if kind == "file":
            (root / "foo").write_text("precious")
        elif kind == "folder":
            (root / "foo").mkdir()
            (root / "foo" / "thesis.tex").write_text("precious")
        else:
            (root / "foo").symlink_to(elsewhere)
        for options in ({}, {"overwrite": True}, {"resume": True}, {"resume": "auto"}):
            with pytest.raises(RunDirError):
                make_trainer(**options)
        assert list(elsewhere.iterdir()) == []
        if kind == "folder":
            assert [path.name for path in (root / "foo").iterdir()] == ["thesis.tex"]

    def test_the_root_may_be_a_link(
        self, root: Path, tmp_path: Path, make_trainer: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        (tmp_path / "real").mkdir()
        root.symlink_to(tmp_path / "real")
        make_trainer(save_interval="1ep").fit()
        assert written().status == "finished"
        assert (tmp_path / "real" / "foo" / "run.json").is_file()

    def test_a_checkpoint_folder_outside_the_run_is_refused(self, make_trainer: Callable[..., Any], root: Path) -> None:
        with pytest.raises(ConfigError, match="save_folder|does not lie in the directory"):
            make_trainer(save_folder="elsewhere", save_interval="1ep").fit()
        assert not (root / "elsewhere").exists()

    def test_a_logger_that_cannot_open_fails_the_run_before_its_first_step(
        self, make_trainer: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        from harness.loggers.base import BaseLogger

        class Refuses(BaseLogger):
            name = "refuses"

            def open(self, run: Any) -> None:
                raise ConnectionRefusedError("no such server")

        with pytest.raises(ConnectionRefusedError):
            make_trainer(loggers=[Refuses()]).fit()
        assert written().status == "failed"
        assert written().steps() == []
        make_trainer(overwrite=True).fit()
        assert written().status == "finished"

    def test_a_folder_for_checkpoints_that_cannot_be_made_fails_the_run_at_its_start(
        self, make_trainer: Callable[..., Any], written: Callable[..., Any], root: Path
    ) -> None:
        trainer = make_trainer(save_interval="1ep")
        (root / "foo" / "checkpoints").write_text("in the way")
        with pytest.raises((RunDirError, CheckpointError)):
            trainer.fit()
        assert written().status == "failed", "and not running, or crashed"
        assert written().manifest.attempts[0].error


READ_ONLY = """
import os, sys
from pathlib import Path
# Loaded before the rights are given up: the packages may lie where nobody else may look.
import torch
from harness import session
from harness.errors import HarnessError
import harness.run.directory

if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    session("foo", root=sys.argv[1])
except HarnessError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("where", ["root", "above the root"])
def test_a_folder_that_is_read_only_is_refused_before_the_first_step(where: str, tmp_path: Path) -> None:
    import tempfile

    # Not below pytest's own folder, which nobody else may enter.
    with tempfile.TemporaryDirectory(prefix="harness-read-only-") as folder:
        parent = Path(folder)
        root = parent / "runs"
        if where == "root":
            root.mkdir(mode=0o555)
        program = parent / "program.py"
        program.write_text(READ_ONLY)
        parent.chmod(0o555)
        done = subprocess.run(
            [sys.executable, str(program), str(root)], capture_output=True, text=True, check=False, cwd="/"
        )
        parent.chmod(0o755)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("RunDirError"), done.stdout
        assert str(root) in done.stdout
        assert "hint:" in done.stdout
        assert left_behind(root) == []


FULL = """
import sys
import torch
from harness import session
from harness.errors import HarnessError

with open(sys.argv[1] + "/filler", "wb", buffering=0) as filler:
    try:
        while True:
            filler.write(b"x" * 4096)
    except OSError:
        pass
try:
    with session("foo", root=sys.argv[1], loggers=["tensorboard"]) as run:
        print("began")
except HarnessError as error:
    print(type(error).__name__, error)
"""


def test_a_disk_that_is_full_is_refused_before_the_first_step(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    mount, program = tmp_path / "mount", tmp_path / "program.py"
    mount.mkdir()
    program.write_text(FULL)
    script = f"mount -t tmpfs -o size=256k none {mount} && {sys.executable} {program} {mount}; ls -A {mount}"
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("RunDirError"), done.stdout + done.stderr
    assert "No space left on device" in lines[0]
    assert "began" not in lines
