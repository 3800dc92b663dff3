"""`harness checkpoints`, run in this process on a run that saved four times."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.checkpoint.best import SaveBest
from harness.checkpoint.index import read_index, write_index
from harness.checkpoint.paths import DEFAULT_FILENAME, DEFAULT_LATEST, CheckpointFolder, CheckpointPaths
from harness.checkpoint.save import CheckpointWriter
from harness.checkpoint.state import WEIGHTS_ONLY, build_state
from harness.cli import main
from harness.run.directory import RunDirectory
from harness.run.manifest import RunFacts, read_manifest
from harness.run.manifest_file import ManifestFile

Captured = pytest.CaptureFixture[str]
STEPS = (5, 10, 15, 20)


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_run(
    name: str = "foo",
    *,
    folder: str = "checkpoints",
    steps: tuple[int, ...] = STEPS,
    best: SaveBest | None = None,
    weights_only: bool = False,
) -> Path:
    """A run that ended, and saved a weight that holds the step; returns its checkpoint folder."""
    directory = RunDirectory.claim(Path("runs"), name)
    facts = RunFacts(run_name=name, name_source="run_name", argv=["train"], pid=1, host="here")
    manifest = ManifestFile.start(directory.manifest_path, facts)
    paths = CheckpointPaths.compile(folder=f"{{run_name}}/{folder}", filename=DEFAULT_FILENAME, latest=DEFAULT_LATEST)
    writer = CheckpointWriter(CheckpointFolder(paths, directory.resolve, {"run_name": name, "rank": 0}), best=best)
    for step in steps:
        state = build_state(
            run_name=name,
            rank=0,
            attempt=1,
            timestamp={"epoch": step // 10, "batch": step},
            state={"model": {"weight": torch.full((3, 4), float(step))}},
            position={"batch_in_epoch": 0, "start": None},
        )
        state |= {WEIGHTS_ONLY: True} if weights_only else {}
        value = None if best is None else abs(step - 10) / 100
        saved = writer.save(state, {"epoch": step // 10, "batch": step}, value=value)
        path = directory.relative(saved.path)
        manifest.add_artifact("checkpoint", path, size_bytes=saved.size_bytes, step=step, crc32c=saved.crc32c)
    manifest.end_attempt("finished")
    directory.release()
    return writer.folder.path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def run(capsys: Captured) -> Callable[..., tuple[int, str, str]]:
    """Runs the command: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["checkpoints", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


Run = Callable[..., tuple[int, str, str]]


def test_the_newest_stands_first_with_its_link_and_what_resuming_takes(run: Run) -> None:
    make_run()
    code, out, err = run("foo")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["file", "step", "epoch", "size", "saved", "(UTC)", "state", "note"]
    assert [line.split()[:3] for line in lines[1:]] == [
        [f"checkpoints/ep{step // 10}-ba{step}-rank0.pt", str(step), str(step // 10)] for step in STEPS[::-1]
    ]
    assert lines[1].endswith("listed  latest-rank0.pt, resume")
    assert all(line.endswith("listed") for line in lines[2:])


def test_as_json_it_is_one_document(run: Run) -> None:
    folder = make_run()
    code, out, _ = run("foo", "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["run_name"], document["directory"]) == ("foo", str(folder.parent))
    newest = document["checkpoints"][0]
    entry = read_index(folder / "checkpoints-rank0.json")["ep2-ba20-rank0.pt"]
    assert newest == {
        "path": "checkpoints/ep2-ba20-rank0.pt",
        "rank": 0,
        "step": 20,
        "epoch": 2,
        "size_bytes": entry.size_bytes,
        "crc32c": entry.crc32c,
        "saved": entry.saved,
        "metric": None,
        "value": None,
        "weights_only": False,
        "state": "listed",
        "reason": None,
        "links": ["latest-rank0.pt"],
        "resume": True,
    }
    assert [row["resume"] for row in document["checkpoints"]] == [True, False, False, False]


def test_the_best_has_its_value_and_its_link_and_stays(run: Run) -> None:
    folder = make_run(best=SaveBest("loss/eval/total", "min"))
    lines = run("foo")[1].splitlines()
    assert lines[0].split()[-3:] == ["state", "metric", "note"]
    assert lines[1].endswith("listed  loss/eval/total 0.1   latest-rank0.pt, resume")
    assert lines[3].endswith("listed  loss/eval/total 0     best-rank0.pt")
    assert [row["value"] for row in json.loads(run("foo", "--json")[1])["checkpoints"]] == [0.1, 0.05, 0.0, 0.05]
    err = run("foo", "--keep", "1")[2]
    assert sorted(path.name for path in folder.glob("ep*")) == ["ep1-ba10-rank0.pt", "ep2-ba20-rank0.pt"]
    assert "ep1-ba10-rank0.pt stays, because best-rank0.pt points to it" in err


def test_weights_alone_are_no_checkpoint_to_go_on_from_and_can_be_exported(run: Run) -> None:
    make_run(weights_only=True)
    lines = run("foo")[1].splitlines()
    assert lines[1].endswith("listed  latest-rank0.pt, weights only")
    assert not any("resume" in line for line in lines)
    assert "weights after step 20" in run("foo", "--export", "w.pt")[1]


def test_folders_of_other_templates_are_found(run: Run) -> None:
    make_run(folder="deep/er")
    assert "deep/er/ep2-ba20-rank0.pt" in run("foo")[1]


def test_only_verifying_reads_and_a_damaged_one_is_code_1(run: Run) -> None:
    folder = make_run()
    flip(folder / "ep2-ba20-rank0.pt")
    assert run("foo")[0] == 0
    code, out, err = run("foo", "--verify")
    assert code == 1
    lines = out.splitlines()
    assert "damaged" in lines[1]
    assert "its content has changed" in lines[1]
    assert lines[2].endswith("verified  resume")
    assert "damaged: 1 of 4 checkpoints" in err
    (folder / "ep2-ba20-rank0.pt").unlink()
    code, out, err = run("foo", "--verify")
    assert (code, err) == (0, "")
    assert "gone" in out.splitlines()[1]


def test_a_long_reading_says_how_far_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.cli.checkpoint_list._PROGRESS_S", 0.0)
    make_run()
    code, _, err = run("foo", "--verify")
    assert code == 0
    assert [line.split(",")[0] for line in err.splitlines()] == [f"read {n} of 4 checkpoints" for n in (1, 2, 3, 4)]


def test_keeping_removes_the_older_ones_everywhere_and_says_which(run: Run) -> None:
    folder = make_run()
    code, out, err = run("foo", "--keep", "2")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["removed", "checkpoints/ep1-ba10-rank0.pt"],
        ["removed", "checkpoints/ep0-ba5-rank0.pt"],
    ]
    assert "removed: 2 of 4 checkpoints" in err
    left = ["ep1-ba15-rank0.pt", "ep2-ba20-rank0.pt"]
    assert sorted(path.name for path in folder.glob("ep*")) == left
    assert sorted(read_index(folder / "checkpoints-rank0.json")) == left
    manifest = read_manifest(folder.parent / "run.json")
    assert [artifact.path for artifact in manifest.artifacts] == [f"checkpoints/{name}" for name in left]
    assert (manifest.summary.checkpoints, manifest.status, len(manifest.attempts)) == (2, "finished", 1)
    assert run("foo", "--keep", "2")[:2] == (0, "")


def test_keeping_as_json_tells_both(run: Run) -> None:
    make_run()
    document = json.loads(run("foo", "--keep", "3", "--json")[1])
    assert [row["step"] for row in document["removed"]] == [5]
    assert [(row["step"], row["state"]) for row in document["kept"]] == [(n, "verified") for n in (20, 15, 10)]


def test_where_none_verifies_nothing_is_removed_and_the_code_is_1(run: Run) -> None:
    folder = make_run()
    for path in folder.glob("ep*"):
        flip(path)
    code, out, err = run("foo", "--keep", "1")
    assert (code, out) == (1, "")
    assert "none of them verifies" in err
    assert err.count("left to be looked at") == 4
    assert len(list(folder.glob("ep*"))) == 4


def test_one_that_cannot_be_removed_is_told_with_code_1(run: Run) -> None:
    folder = make_run()
    index = read_index(folder / "checkpoints-rank0.json")
    long_name = "x" * 250  # so long that the name it is moved aside to is too long for the system
    (folder / "ep0-ba5-rank0.pt").rename(folder / long_name)
    index[long_name] = index.pop("ep0-ba5-rank0.pt")
    write_index(folder / "checkpoints-rank0.json", index)
    code, out, err = run("foo", "--keep", "2")
    assert (code, len(out.splitlines())) == (1, 1)
    assert f"error: {long_name} could not be removed: File name too long" in err
    assert sorted(read_index(folder / "checkpoints-rank0.json")) == [
        "ep1-ba15-rank0.pt",
        "ep2-ba20-rank0.pt",
        long_name,
    ]


def test_a_run_that_is_going_on_keeps_all_and_its_owner_is_named(run: Run) -> None:
    folder = make_run()
    owner = RunDirectory.claim(Path("runs"), "foo", resume=True)
    try:
        code, out, err = run("foo", "--keep", "1")
    finally:
        owner.release()
    assert (code, out) == (2, "")
    assert f"is in use: process {os.getpid()} on" in err
    assert len(list(folder.glob("ep*"))) == 4


def test_the_newest_good_weights_are_exported_and_the_damaged_named(run: Run) -> None:
    folder = make_run()
    flip(folder / "ep2-ba20-rank0.pt")
    code, out, err = run("foo", "--export", "w.safetensors")
    assert code == 0
    assert "weights after step 15" in out
    assert "ep2-ba20-rank0.pt is passed over: it has checksum" in err
    assert load_file("w.safetensors")["weight"].equal(torch.full((3, 4), 15.0))


def test_a_step_can_be_asked_for_and_the_ending_decides_the_form(run: Run) -> None:
    make_run()
    assert run("foo", "--export", "w.pt", "--step", "10")[0] == 0
    assert torch.load("w.pt", weights_only=True)["weight"].equal(torch.full((3, 4), 10.0))
    document = json.loads(run("foo", "--export", "w.pt", "--overwrite", "--json")[1])
    assert document == {
        "run_name": "foo",
        "checkpoint": "checkpoints/ep2-ba20-rank0.pt",
        "step": 20,
        "path": "w.pt",
        "names": 1,
        "left_out": [],
    }
    assert torch.load("w.pt", weights_only=True)["weight"].equal(torch.full((3, 4), 20.0))


def test_one_that_nobody_listed_is_exported_if_it_loads(run: Run) -> None:
    folder = make_run()
    index = read_index(folder / "checkpoints-rank0.json")
    del index["ep2-ba20-rank0.pt"]
    write_index(folder / "checkpoints-rank0.json", index)
    assert "weights after step 20" in run("foo", "--export", "w.pt")[1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("fo",), "did you mean foo?"),
        (("../foo",), "run_name='../foo'"),
        (("foo", "--keep", "0"), "--keep"),
        (("foo", "--keep", "-1"), "--keep"),
        (("foo", "--export", "w.bin"), "must end in .safetensors or .pt"),
        (("foo", "--export", ""), "must end in .safetensors or .pt"),
        (("foo", "--export", "there.pt"), "is there already"),
        (("foo", "--export", "none/w.pt"), "there is no folder none"),
        (("foo", "--export", "folder.pt", "--overwrite"), "is a folder"),
        (("foo", "--export", "runs/foo/checkpoints/ep2-ba20-rank0.pt", "--overwrite"), "among the checkpoints"),
        (("foo", "--export", "w.pt", "--step", "7"), "the steps 20, 15, 10, 5"),
        (("foo", "--step", "5"), "--step needs --export"),
        (("foo", "--overwrite"), "--overwrite needs --export"),
        (("foo", "--keep", "1", "--export", "w.pt"), "--keep and --export exclude each other"),
        (("foo", "--keep", "1", "--verify"), "--verify and --keep exclude each other"),
        (("bare", "--export", "w.pt"), "run 'bare' has no checkpoint"),
    ],
)
def test_wrong_use_is_told_with_code_2_and_changes_nothing(run: Run, arguments: tuple[str, ...], text: str) -> None:
    folder = make_run()
    make_run("bare", steps=())
    Path("there.pt").write_bytes(b"mine")
    Path("folder.pt").mkdir()
    before = {path: path.read_bytes() for path in folder.glob("ep*")}
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert text in err
    assert "hint:" in err
    assert {path: path.read_bytes() for path in folder.glob("ep*")} == before
    assert Path("there.pt").read_bytes() == b"mine"
    assert not Path("w.pt").exists()


@pytest.mark.parametrize("arguments", [(), ("--verify",), ("--keep", "2")])
def test_a_run_without_checkpoints_is_no_error(run: Run, arguments: tuple[str, ...]) -> None:
    make_run(steps=())
    code, out, err = run("foo", *arguments)
    assert (code, out) == (0, "")
    assert "run foo has no checkpoints" in err
    assert json.loads(run("foo", "--json")[1])["checkpoints"] == []


def test_a_damaged_step_that_was_asked_for_is_an_error(run: Run) -> None:
    folder = make_run()
    flip(folder / "ep1-ba10-rank0.pt")
    code, out, err = run("foo", "--export", "w.pt", "--step", "10")
    assert (code, out) == (2, "")
    assert "no checkpoint of foo of step 10 verifies" in err
    assert not Path("w.pt").exists()


def test_a_missing_package_is_named_before_anything_is_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    code, _, err = run("foo", "--export", "w.safetensors")
    assert code == 2
    assert 'pip install "profiling-harness[safetensors]"' in err


def test_a_link_out_of_the_run_is_not_followed(run: Run, tmp_path: Path) -> None:
    folder = make_run()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert run("foo", "--keep", "1")[0] == 0
    assert len(list((tmp_path / "elsewhere").glob("ep*"))) == 4


def test_other_runs_checkpoints_are_not_touched(run: Run) -> None:
    make_run()
    other: dict[str, Any] = {path.name: path.read_bytes() for path in make_run("bar").iterdir()}
    assert run("foo", "--keep", "1")[0] == 0
    assert {path.name: path.read_bytes() for path in Path("runs/bar/checkpoints").iterdir()} == other
