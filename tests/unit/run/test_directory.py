from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import RunDirError, RunNameError, TemplateError
from harness.run import directory
from harness.run.directory import RunDirectory, list_runs
from harness.run.lock import is_locked
from harness.run.manifest import RunFacts
from harness.run.manifest_file import ManifestFile


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    claimed = RunDirectory.claim(tmp_path / "runs", "foo")
    yield claimed
    claimed.release()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def begin(run: RunDirectory, unix_s: int = 1_700_000_000) -> ManifestFile:
    facts = RunFacts(run_name=run.run_name, name_source="run_name", argv=["train"], pid=1, host="h")
    return ManifestFile.start(run.manifest_path, facts, unix_ns=lambda: unix_s * 10**9)


def test_a_template_becomes_a_path_and_its_folders_are_made(run: RunDirectory) -> None:
    path = run.resolve("foo/traces/deep/rank0.000012.pt.trace.json.gz")
    assert path == run.path / "traces" / "deep" / "rank0.000012.pt.trace.json.gz"
    assert path.parent.is_dir()
    assert not path.exists()
    assert run.resolve("foo/traces/deep/other").parent == path.parent  # folders may be there


def test_the_run_directory_itself_is_a_valid_folder(run: RunDirectory) -> None:
    assert run.resolve("foo") == run.path


@pytest.mark.parametrize(
    "relative",
    [
        "",
        "/abs",
        "/foo/x",
        "..",
        "foo/../bar",
        "foo/./x",
        "foo//x",
        "foo/",
        "foo/a\0b",
        "foo\\..\\x",
        "foo/a\\b",
    ],
)
def test_a_path_that_is_not_plain_is_refused(run: RunDirectory, relative: str) -> None:
    with pytest.raises(TemplateError, match="no plain relative path"):
        run.resolve(relative)


@pytest.mark.parametrize("relative", ["bar/x", "foobar/x", "metrics.jsonl"])
def test_a_path_outside_the_run_is_refused_and_makes_nothing(run: RunDirectory, relative: str) -> None:
    with pytest.raises(TemplateError, match="does not lie in the directory"):
        run.resolve(relative)
    assert names(run.root) == ["foo"]


@pytest.mark.parametrize(
    "name", ["run.json", "recipe.toml", "steps-rank0.jsonl", ".lock", ".capture", ".capture/trace.json"]
)
def test_a_template_may_not_name_the_harness_own_files(run: RunDirectory, name: str) -> None:
    with pytest.raises(TemplateError, match="harness's own"):
        run.resolve(f"foo/{name}")


@pytest.mark.parametrize("planted", ["traces", "traces/deep"])
def test_a_planted_link_below_the_root_is_not_followed(run: RunDirectory, tmp_path: Path, planted: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    link = run.path / planted
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim)
    with pytest.raises(RunDirError, match=planted):
        run.resolve("foo/traces/deep/er/x")
    assert names(victim) == []


def test_a_file_where_a_folder_must_be_is_an_error(run: RunDirectory) -> None:
    (run.path / "traces").touch()
    with pytest.raises(RunDirError, match="cannot use the folder"):
        run.resolve("foo/traces/x")


def test_a_run_directory_that_was_removed_is_not_made_again(run: RunDirectory) -> None:
    run.path.rename(run.root / "moved")
    with pytest.raises(RunDirError, match="foo"):
        run.resolve("foo/traces/x")
    assert names(run.root) == ["moved"]
    with pytest.raises(RunDirError, match="removed, renamed or replaced"):
        run.check_in_place()


def test_relative_is_the_path_the_manifest_writes(run: RunDirectory) -> None:
    assert run.relative(run.path / "traces" / "a.json") == "traces/a.json"
    with pytest.raises(RunDirError, match="does not lie"):
        run.relative(run.root / "bar" / "a.json")


def test_the_private_folder_is_for_this_user_only(run: RunDirectory) -> None:
    run.private_dir.mkdir(mode=0o777)
    run.private_dir.chmod(0o777)
    assert run.make_private_dir() == run.private_dir
    assert run.private_dir.stat().st_mode & 0o777 == 0o700


def test_a_link_in_place_of_the_private_folder_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir(mode=0o755)
    run.private_dir.symlink_to(tmp_path / "victim")
    with pytest.raises(RunDirError, match="cannot make"):
        run.make_private_dir()
    assert (tmp_path / "victim").stat().st_mode & 0o777 == 0o755


def test_a_run_is_found_by_name_without_being_owned(run: RunDirectory) -> None:
    found = RunDirectory.find(run.root, "foo")
    assert found.path == run.path
    assert found.lock is None
    found.check_in_place()
    found.release()
    with pytest.raises(RunDirError, match="cannot find the run"):
        RunDirectory.find(run.root, "bar")
    with pytest.raises(RunNameError):
        RunDirectory.find(run.root, "../runs/foo")


def test_a_listing_has_every_run_by_start_and_nothing_else(tmp_path: Path) -> None:
    for number, name in enumerate(["late", "early"]):
        run = RunDirectory.claim(tmp_path, name)
        manifest = begin(run, unix_s=1_700_000_000 - number)
        manifest.set_progress(12 + number, 3)
        manifest.add_artifact("trace", "traces/a", size_bytes=1)
        manifest.set_own_cost({}, own_cost_pct=0.25)
        manifest.end_attempt("finished")
        run.release()
    (tmp_path / "no-run").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / ".trash-x-0123456789abcdef").mkdir()
    (tmp_path / "linked").symlink_to("late")
    early, late = list_runs(tmp_path)
    assert (early.run_name, late.run_name) == ("early", "late")
    assert (late.status, late.step, late.epoch, late.traces, late.checkpoints) == ("finished", 12, 3, 1, 0)
    assert late.own_cost_pct == 0.25
    assert late.started == "2023-11-14T22:13:20.000Z"


def test_a_listing_tells_a_live_run_from_a_killed_one(tmp_path: Path) -> None:
    alive, dead = RunDirectory.claim(tmp_path, "alive"), RunDirectory.claim(tmp_path, "dead")
    begin(alive)
    begin(dead)
    dead.release()
    assert {found.run_name: found.status for found in list_runs(tmp_path)} == {
        "alive": "running",
        "dead": "crashed",
    }
    alive.release()


def test_a_run_that_ends_while_it_is_listed_is_not_called_crashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.claim(tmp_path, "foo")
    manifest = begin(run)

    def ends_before_the_look(path: Path) -> bool:
        manifest.end_attempt("finished")
        run.release()
        return is_locked(path)

    monkeypatch.setattr(directory, "is_locked", ends_before_the_look)
    assert [found.status for found in list_runs(tmp_path)] == ["finished"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"format":1}',
        b"[" * 100_000,
        b'{"format":2,"run_name":"x","status":"s","summary":{}}',
    ],
    ids=["empty", "torn", "list", "not utf-8", "no name", "deep", "later format"],
)
def test_a_listing_survives_a_bad_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_bytes(content)
    (found,) = list_runs(tmp_path)
    assert (found.run_name, found.status) == ("bad", "unreadable")


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
def test_a_listing_neither_waits_for_nor_follows_what_is_no_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "odd").mkdir()
    path = tmp_path / "odd" / "run.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/etc/hostname")
    (found,) = list_runs(tmp_path)
    assert found.status == "unreadable"


def test_a_root_that_is_not_there_holds_no_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "runs") == []
    (tmp_path / "file").touch()
    with pytest.raises(RunDirError, match="cannot list"):
        list_runs(tmp_path / "file")
