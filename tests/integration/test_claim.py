"""Several real processes that want the same name at the same moment."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from harness.errors import RunLockedError
from harness.run.directory import RunDirectory, list_runs
from harness.run.manifest import RunFacts
from harness.run.manifest_file import ManifestFile

RACE = """
    import sys, time
    from pathlib import Path
    from harness.errors import RunDirError
    from harness.run.directory import RunDirectory
    from harness.run.manifest import RunFacts
    from harness.run.manifest_file import ManifestFile

    root, options = Path(sys.argv[1]), eval(sys.argv[2])
    print("ready", flush=True)
    owned = []
    for line in sys.stdin:
        name, at = line.split()
        while time.monotonic() < float(at):
            pass
        try:
            run = RunDirectory.claim(root, name, **options)
        except RunDirError as error:
            print("refused", type(error).__name__, flush=True)
            continue
        facts = RunFacts(run_name=name, name_source="x", argv=[], pid=1, host="h")
        ManifestFile.start(run.manifest_path, facts, resumed=run.resumed, guard=run.check_in_place)
        owned.append(run)  # held until the end
        print("owner", run.resumed, flush=True)
"""

GENERATE = """
    import random, sys
    from pathlib import Path
    from harness.naming.run_name import NameGenerator
    from harness.run.directory import RunDirectory

    class TwoWords:
        def __init__(self):
            self.random = random.Random(1)  # the same draws in both processes: every name clashes
        def generate(self):
            return f"1657932618-{self.random.choice('abcdefghij')}-{self.random.choice('abcdefghij')}"

    generator = TwoWords() if sys.argv[2] == "tiny" else NameGenerator(unix_s=lambda: 1657932618)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(32):
        print(RunDirectory.claim_generated(Path(sys.argv[1]), generator).run_name, flush=True)
    sys.stdin.readline()
"""


def spawn(script: str, *argv: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line)
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def race(root: Path, names: list[str], options: str) -> list[list[str]]:
    """What four processes were told when they claimed each name at one moment."""
    processes = [spawn(RACE, str(root), options) for _ in range(4)]
    try:
        told = []
        for name in names:
            at = time.monotonic() + 0.01
            for process in processes:
                say(process, f"{name} {at}\n")
            told.append([hear(process) for process in processes])
        return told
    finally:
        for process in processes:
            process.communicate()


@pytest.mark.parametrize("options", ["{}", "{'resume': 'auto'}", "{'overwrite': True}"])
def test_a_new_name_that_four_processes_claim_at_once_gets_exactly_one_owner(tmp_path: Path, options: str) -> None:
    for told in race(tmp_path, [f"run-{number}" for number in range(25)], options):
        assert sorted(told) == ["owner False", *["refused RunLockedError"] * 3]


@pytest.mark.parametrize(("options", "resumed"), [("{'overwrite': True}", False), ("{'resume': True}", True)])
def test_an_existing_run_that_four_processes_want_at_once_gets_exactly_one_owner(
    tmp_path: Path, options: str, resumed: bool
) -> None:
    names = [f"run-{number}" for number in range(25)]
    for name in names:
        run = RunDirectory.claim(tmp_path, name)
        facts = RunFacts(run_name=name, name_source="x", argv=[], pid=1, host="h")
        ManifestFile.start(run.manifest_path, facts).end_attempt("finished")
        run.release()
    for told in race(tmp_path, names, options):
        assert sorted(told) == [f"owner {resumed}", *["refused RunLockedError"] * 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)  # and the trash is empty


@pytest.mark.parametrize("kind", ["tiny", "real"])
def test_two_processes_claim_32_generated_names_each_without_a_clash(tmp_path: Path, kind: str) -> None:
    processes = [spawn(GENERATE, str(tmp_path), kind) for _ in range(2)]
    for process in processes:
        say(process, "\n")
    names = [hear(process) for _ in range(32) for process in processes]
    for process in processes:
        process.communicate("\n")
    assert len(set(names)) == 64
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_the_run_of_a_killed_owner_is_claimed_at_once_and_of_a_living_one_never(tmp_path: Path) -> None:
    for number in range(5):
        owner = spawn(RACE, str(tmp_path), "{'resume': 'auto'}")
        say(owner, f"foo {time.monotonic()}\n")
        assert hear(owner) == f"owner {number > 0}"
        with pytest.raises(RunLockedError, match=f"process {owner.pid} on"):
            RunDirectory.claim(tmp_path, "foo", resume=True)
        assert [run.status for run in list_runs(tmp_path)] == ["running"]
        owner.kill()
        owner.communicate()
        assert [run.status for run in list_runs(tmp_path)] == ["crashed"]


def test_ten_thousand_runs_are_listed_well_under_a_second(tmp_path: Path) -> None:
    facts = RunFacts(
        run_name="x",
        name_source="run_name",
        argv=["harness", "train", "x"],
        pid=1,
        host="node",
        config={f"option_{number}": number for number in range(40)},
        versions={"python": "3.11.7", "torch": "2.13.0"},
    )
    (tmp_path / "first").mkdir()
    manifest = ManifestFile.start(tmp_path / "first" / "run.json", facts)
    for number in range(10):
        manifest.add_artifact("trace", f"traces/{number}", size_bytes=number, step=number)
    manifest.end_attempt("finished")
    data = (tmp_path / "first" / "run.json").read_bytes()
    assert len(data) > 2500
    for number in range(9_999):
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        (folder / "run.json").write_bytes(data)
    began = time.process_time()
    runs = list_runs(tmp_path)
    took_s = time.process_time() - began
    assert len(runs) == 10_000
    assert {run.traces for run in runs} == {10}
    assert took_s < 1.0
