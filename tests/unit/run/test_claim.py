from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import ConfigError, RunDirError, RunDirExistsError, RunLockedError, RunNameError
from harness.run.directory import RunDirectory
from harness.run.manifest import RunFacts
from harness.run.manifest_file import ManifestFile


class FewNames:
    """Draws from a short list, again and again."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.draws = 0

    def generate(self) -> str:
        self.draws += 1
        return self.names[(self.draws - 1) % len(self.names)]


@pytest.fixture(autouse=True)
def _releases_all() -> Iterator[None]:
    yield
    from harness.run import lock

    for held in list(lock._held):
        held.release()


def begin(directory: RunDirectory) -> ManifestFile:
    facts = RunFacts(run_name=directory.run_name, name_source="run_name", argv=["train"], pid=1, host="h")
    return ManifestFile.start(directory.manifest_path, facts, guard=directory.check_in_place)


def finished_run(root: Path, name: str, status: str = "finished") -> Path:
    directory = RunDirectory.claim(root, name)
    manifest = begin(directory)
    if status != "killed":
        manifest.end_attempt(status)  # type: ignore[arg-type]
    (directory.path / "metrics-rank0.jsonl").write_text("old\n")
    directory.release()
    return directory.path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_name_makes_the_root_and_a_directory_with_a_held_lock(tmp_path: Path) -> None:
    run = RunDirectory.claim(tmp_path / "deep" / "runs", "foo")
    assert run.path == tmp_path / "deep" / "runs" / "foo"
    assert names(run.path) == [".lock"]
    assert not run.resumed
    assert run.lock is not None
    assert run.lock.held
    run.release()
    assert not run.lock.held


def test_a_root_that_is_a_link_is_resolved_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "runs").symlink_to("real")
    run = RunDirectory.claim(tmp_path / "runs", "foo")
    assert run.path == tmp_path / "real" / "foo"


@pytest.mark.parametrize("name", ["", "..", "../x", "/abs", "a/b", "a\0b", "a\nb", "é", "x" * 300, ".trash-x"])
def test_a_bad_name_touches_nothing_but_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunNameError):
        RunDirectory.claim(tmp_path / "runs", name)
    assert names(tmp_path) == ["runs"]
    assert names(tmp_path / "runs") == []


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"resume": "auto"}, {"overwrite": True}])
def test_a_live_run_is_refused_whatever_is_asked(tmp_path: Path, options: dict) -> None:
    begin(RunDirectory.claim(tmp_path, "foo"))
    with pytest.raises(RunLockedError, match=f"process {os.getpid()} on"):
        RunDirectory.claim(tmp_path, "foo", **options)
    assert (tmp_path / "foo" / "run.json").exists()


@pytest.mark.parametrize(
    ("status", "told"), [("finished", "finished"), ("interrupted", "interrupted"), ("killed", "crashed")]
)
def test_an_existing_run_is_refused_with_the_three_ways_on(tmp_path: Path, status: str, told: str) -> None:
    finished_run(tmp_path, "foo", status)
    finished_run(tmp_path, "foo-2")
    before = (tmp_path / "foo" / "run.json").read_bytes()
    with pytest.raises(RunDirExistsError) as caught:
        RunDirectory.claim(tmp_path, "foo")
    assert f"({told})" in caught.value.message
    for way in ("--resume", "resume=True", "--overwrite", "overwrite=True", "foo-3"):
        assert way in str(caught.value.hint)
    assert (tmp_path / "foo" / "run.json").read_bytes() == before
    RunDirectory.claim(tmp_path, "foo", resume=True)  # the refusal let go of the lock


@pytest.mark.parametrize("resume", [True, "auto"])
def test_resume_goes_on_with_a_run_that_is_there(tmp_path: Path, resume) -> None:
    finished_run(tmp_path, "foo", "killed")
    run = RunDirectory.claim(tmp_path, "foo", resume=resume)
    assert run.resumed
    assert (run.path / "metrics-rank0.jsonl").read_text() == "old\n"


def test_resuming_nothing_names_runs_like_it_and_makes_no_directory(tmp_path: Path) -> None:
    finished_run(tmp_path, "digits-1")
    with pytest.raises(RunDirError, match="no run 'digist-1'") as caught:
        RunDirectory.claim(tmp_path, "digist-1", resume=True)
    assert "digits-1" in str(caught.value.hint)
    assert names(tmp_path) == ["digits-1"]


def test_resuming_in_a_root_that_is_not_there_does_not_make_it(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="no run 'foo' in .*elsewhere to resume"):
        RunDirectory.claim(tmp_path / "elsewhere", "foo", resume=True)
    assert names(tmp_path) == []


def test_automatic_resume_of_nothing_starts_a_run(tmp_path: Path) -> None:
    assert not RunDirectory.claim(tmp_path, "foo", resume="auto").resumed


def test_overwrite_replaces_the_run_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    finished_run(tmp_path, "foo")
    run = RunDirectory.claim(tmp_path, "foo", overwrite=True)
    assert not run.resumed
    assert names(tmp_path) == ["foo"]
    assert names(run.path) == [".lock"]
    run.check_in_place()


def test_overwrite_of_nothing_starts_a_run(tmp_path: Path) -> None:
    assert not RunDirectory.claim(tmp_path, "foo", overwrite=True).resumed


def test_overwrite_follows_no_link_out_of_the_run(tmp_path: Path) -> None:
    victim = tmp_path / "data"
    victim.mkdir()
    (victim / "precious").write_text("x")
    path = finished_run(tmp_path / "runs", "foo")
    (path / "link").symlink_to(victim)
    (path / "file-link").symlink_to(victim / "precious")
    RunDirectory.claim(tmp_path / "runs", "foo", overwrite=True)
    assert (victim / "precious").read_text() == "x"
    assert names(tmp_path / "runs") == ["foo"]


def test_the_trash_of_a_killed_overwrite_is_removed_by_the_next(tmp_path: Path) -> None:
    finished_run(tmp_path, "old").rename(tmp_path / ".trash-old-0123456789abcdef")
    (tmp_path / ".trash-mine").mkdir()
    (tmp_path / ".trash-x-0123456789abcdef").symlink_to(tmp_path / ".trash-mine")
    finished_run(tmp_path, "foo")
    RunDirectory.claim(tmp_path, "foo", overwrite=True)
    # what has not the form of our trash is somebody else's, and so is a link
    assert names(tmp_path) == [".trash-mine", ".trash-x-0123456789abcdef", "foo"]


def test_resume_and_overwrite_together_are_refused(tmp_path: Path) -> None:
    finished_run(tmp_path, "foo")
    for resume in (True, "auto"):
        with pytest.raises(ConfigError, match="overwrite=True"):
            RunDirectory.claim(tmp_path, "foo", resume=resume, overwrite=True)  # type: ignore[arg-type]
    assert (tmp_path / "foo" / "metrics-rank0.jsonl").exists()


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"resume": "auto"}, {"overwrite": True}])
def test_a_directory_that_is_no_run_is_left_as_it_is(tmp_path: Path, options: dict) -> None:
    (tmp_path / "foo").mkdir()
    (tmp_path / "foo" / "thesis.tex").write_text("x")
    with pytest.raises(RunDirError, match="is there and is no run") as caught:
        RunDirectory.claim(tmp_path, "foo", **options)
    assert "foo-2" in str(caught.value.hint)
    assert names(tmp_path / "foo") == ["thesis.tex"]


def test_a_manifest_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "foo").mkdir()
    (tmp_path / "foo" / "run.json").write_text('{"scripts": {}}')
    with pytest.raises(RunDirError, match="is not overwritten"):
        RunDirectory.claim(tmp_path, "foo", overwrite=True)
    assert (tmp_path / "foo" / "run.json").read_text() == '{"scripts": {}}'


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"resume": "auto"}])
@pytest.mark.parametrize(
    ("content", "told"), [("{", "is no manifest"), ("[]", "is no manifest"), ('{"format": 99}', "a format later than")]
)
def test_a_manifest_that_cannot_be_read_is_told_instead_of_ways_on_that_do_not_work(
    tmp_path: Path, options: dict, content: str, told: str
) -> None:
    path = finished_run(tmp_path, "foo") / "run.json"
    path.write_text(content)
    with pytest.raises(RunDirError, match=told) as caught:
        RunDirectory.claim(tmp_path, "foo", **options)
    assert "--resume" not in str(caught.value)
    assert path.read_text() == content


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".run.json.0123456789abcdef.tmp"]])
@pytest.mark.parametrize("options", [{}, {"resume": "auto"}, {"overwrite": True}])
def test_what_a_claim_killed_before_its_first_manifest_left_is_claimed(
    tmp_path: Path, left: list[str], options: dict
) -> None:
    (tmp_path / "foo").mkdir()
    for name in left:
        (tmp_path / "foo" / name).touch()
    assert not RunDirectory.claim(tmp_path, "foo", **options).resumed


def test_an_empty_directory_is_nothing_to_resume(tmp_path: Path) -> None:
    (tmp_path / "foo").mkdir()
    with pytest.raises(RunDirError, match="to resume"):
        RunDirectory.claim(tmp_path, "foo", resume=True)
    RunDirectory.claim(tmp_path, "foo")  # the refusal let go of the lock


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_what_is_no_directory_is_refused_and_not_followed(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    if kind == "file":
        (tmp_path / "foo").touch()
    else:
        (tmp_path / "foo").symlink_to("elsewhere" if kind == "link" else "nowhere")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(RunDirError, match="not the directory of a run"):
            RunDirectory.claim(tmp_path, "foo", **options)
    assert names(tmp_path / "elsewhere") == []
    assert not (tmp_path / "nowhere").exists()


def test_a_generated_name_that_is_taken_is_drawn_again(tmp_path: Path) -> None:
    finished_run(tmp_path, "1-red-fox")
    (tmp_path / "1-blue-fox").touch()
    generator = FewNames("1-red-fox", "1-red-fox", "1-blue-fox", "1-green-fox")
    run = RunDirectory.claim_generated(tmp_path, generator)
    assert run.run_name == "1-green-fox"
    assert generator.draws == 4
    assert run.lock is not None
    assert run.lock.held


def test_a_generator_with_no_free_name_ends_in_an_error(tmp_path: Path) -> None:
    finished_run(tmp_path, "1-red-fox")
    with pytest.raises(RunDirError, match="no free name"):
        RunDirectory.claim_generated(tmp_path, FewNames("1-red-fox"))


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(RunDirError, match="root of runs"):
        RunDirectory.claim(tmp_path / "runs", "foo")
    with pytest.raises(RunDirError, match="root of runs"):
        RunDirectory.claim(tmp_path / "runs" / "deeper", "foo")


def test_a_read_only_root_is_refused_before_anything_else() -> None:
    """As another user where the test runs as root, whom permissions do not hold."""
    script = """
        import os, sys
        from pathlib import Path
        from harness.errors import RunDirError
        from harness.run.directory import RunDirectory
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        for name, options in (("new", {}), ("foo", {}), ("foo", {"resume": True})):
            try:
                RunDirectory.claim(Path(sys.argv[1]), name, **options)
            except RunDirError as error:
                print(type(error).__name__, error.message)
    """
    # pytest's own folders are closed to the other user
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = Path(folder).resolve() / "runs"
        finished_run(root, "foo")
        root.chmod(0o555)
        command = [sys.executable, "-c", textwrap.dedent(script), str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        root.chmod(0o755)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"RunDirError the root of runs {root} cannot be written") for line in lines)
