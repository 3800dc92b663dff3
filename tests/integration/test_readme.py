"""The README keeps its word: its Python runs, its commands exist, its tables are the code's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import harness.cli
from harness.capture.recipe import known_recipes
from harness.loop.options import DEFAULT_ROOT
from harness.naming.run_name import ENVIRONMENT
from harness.run.directory import RunDirectory
from harness.run.manifest import Manifest, read_manifest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
PYTHON = [block.strip() for block in re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)]
TIMEOUT_S = 120


def shell_lines(text: str) -> list[str]:
    """The indented lines of a page that are commands, without their comments."""
    lines = re.findall(r"^    (?:  )?((?:harness|make|pip|vizviewer) .*)$", text, re.MULTILINE)
    return [line.split("  ")[0].split(" > ")[0] for line in lines]


def table(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading."""
    found = README.split(f"\n## {heading}\n", 1)[1].split("|---", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()[1:]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the examples are run one after the other, as the page shows them."""
    return tmp_path_factory.mktemp("readme")


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder, with one thread as on a busy machine."""
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    environment |= {
        "HARNESS_ROOT": str(site / DEFAULT_ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=site, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )


def manifest(site: Path, run_name: str) -> Manifest:
    return read_manifest(RunDirectory.find(site / DEFAULT_ROOT, run_name).manifest_path)


@pytest.fixture(scope="module")
def examples(site: Path) -> list[subprocess.CompletedProcess[str]]:
    """What came of each example. One that begins with the name of a file is written there, too."""
    done = []
    for number, block in enumerate(PYTHON):
        named = re.match(r"# (\S+\.py)\n", block)
        script = site / (named[1] if named else f"example{number}.py")
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(block, encoding="utf-8")
        done.append(run(site, "-W", "error::UserWarning:__main__", str(script)))
    return done


def test_every_python_example_runs(examples: list[subprocess.CompletedProcess[str]]) -> None:
    assert len(examples) == 4
    for block, done in zip(PYTHON, examples, strict=True):
        assert done.returncode == 0, f"{block}\n\n{done.stderr}"


@pytest.mark.usefixtures("examples")
def test_the_examples_leave_the_runs_they_name(site: Path) -> None:
    trained, own = manifest(site, "my-cool-run-name"), manifest(site, "own-loop")
    assert (trained.status, trained.summary.step, trained.summary.checkpoints) == ("finished", 90, 2)
    assert (own.status, own.summary.step, own.summary.traces) == ("finished", 64, 2)
    assert min(artifact.path for artifact in trained.artifacts if artifact.kind == "trace") == (
        "traces/rank0.000023.pt.trace.json.gz"
    )


def test_the_reading_example_prints_steps_and_phases(examples: list[subprocess.CompletedProcess[str]]) -> None:
    lines = examples[-1].stdout.splitlines()
    assert lines[0].startswith("64 steps, forward takes ")
    shown = {(line.split()[0], line.split()[1]) for line in lines[1:]}
    assert {(step, phase) for step in ("23", "26") for phase in ("data", "forward", "backward", "optimizer")} <= shown


@pytest.mark.usefixtures("examples")
def test_the_workload_of_the_readme_is_trained_by_its_command(site: Path) -> None:
    command = next(line for line in shell_lines(README) if "my_pkg.train:build" in line)
    done = run(site, "-m", *shlex.split(command))
    assert done.returncode == 0, done.stderr
    found = manifest(site, "own-workload")
    assert (found.status, found.summary.step, found.summary.traces) == ("finished", 64, 2)
    assert found.attempts[0].argv[-2:] == ["-o", "lr=0.05"]


@pytest.mark.usefixtures("examples")
def test_the_tree_of_a_run_names_all_that_is_there_and_nothing_else(site: Path) -> None:
    tree = README.split("    runs/foo/\n", 1)[1].split("\n\n", 1)[0]
    names = [name for line in tree.splitlines() for name in re.findall(r"^ {6}(\S+)(?:  (\S+/))?", line)]
    named = {name.rstrip("/") for pair in names for name in pair if name}
    directory = site / DEFAULT_ROOT / "my-cool-run-name"
    there = {re.sub(r"^(events\.out\.tfevents\.).*", r"\1…", path.name) for path in directory.iterdir()}
    assert named == there
    below = set(re.findall(r"^ {8}(\S+)", tree, re.MULTILINE))
    found = {path.name for folder in ("traces", "checkpoints") for path in (directory / folder).iterdir()}
    assert below <= found


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_the_pages_are_understood(page: str) -> None:
    for line in shell_lines((ROOT / page).read_text(encoding="utf-8")):
        program, *words = shlex.split(line, comments=True)
        if program == "harness" and "…" not in line:
            name, *arguments = words
            command = harness.cli.harness.commands[name]
            with command.make_context(name, arguments):
                pass
        elif program == "make":
            targets = [word for word in words if "=" not in word]
            settings = [word.partition("=")[0] for word in words if "=" in word]
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            for target in targets:
                assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), line
            for setting in settings:
                assert re.search(rf"\b{setting}\b", makefile), line


def test_a_command_that_does_not_exist_would_be_found() -> None:
    assert shell_lines("text\n\n    harness profile foo --nonsense 1  # why\n") == ["harness profile foo --nonsense 1"]
    with pytest.raises(click.UsageError, match="nonsense"):
        harness.cli.harness.commands["profile"].make_context("profile", ["foo", "--nonsense", "1"])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith("https://"):
            assert (ROOT / page).parent.joinpath(target).is_file(), target


def test_the_recipes_of_the_readme_are_those_that_ship() -> None:
    assert {row[0].strip("`") for row in table("Recipes")} == set(known_recipes())


def test_the_variables_of_the_readme_are_those_that_are_read() -> None:
    named = set(re.findall(r"`([A-Z_]+)`", " ".join(row[0] for row in table("Environment variables"))))
    assert named == {"HARNESS_ROOT", *ENVIRONMENT, "RANK", "WORLD_SIZE"}


def test_the_picture_is_small_enough_to_be_kept() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures == ["docs/images/trace.png"]
    assert (ROOT / pictures[0]).stat().st_size < 300_000
