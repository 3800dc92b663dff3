"""The two sides of a comparison: a revision in a folder of its own, and the working tree.

Each side is measured by its own suite with its own package. The measuring code is part of both: where it differs, the
difference may be the measurement's, which is said.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pytest_benchmark.stats import Stats
from recorded import SECONDS
from saved import Saved, read_saved, without_folder

from harness.errors import BenchError, ConfigError

ROOT = Path(__file__).parents[1]
MEASURING = ("benchmarks", "harness/bench")
"""What measures: paths whose changes make two sides hard to compare."""
_LAST_LINES = 12
_TIMEOUT_S = 1800


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What is measured: a folder with `harness` and `benchmarks` in it."""

    name: str
    """`base` or `new`."""
    folder: Path
    """Absolute."""
    commit: str
    """The full hash."""
    dirty: bool
    """Whether its files differ from that commit."""

    def __str__(self) -> str:
        return f"{self.commit[:12]}{' with changes' if self.dirty else ''}"


def working_tree() -> Side:
    """The side that is new. A dirty tree is measured as it is."""
    return Side(name="new", folder=ROOT, commit=_git("rev-parse", "HEAD"), dirty=bool(_git("status", "--porcelain")))


def check_out(revision: str, folder: Path) -> Side:
    """Put the files of a revision into a folder, which is emptied before.

    Raises:
        ConfigError: git does not know the revision, or its files have no suite that can be compared.
    """
    try:
        commit = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except BenchError:
        known = _git("for-each-ref", "--format=%(refname:short)").splitlines()
        near = get_close_matches(revision, known, n=3, cutoff=0.4) or known[:5]
        raise ConfigError(
            f"BASE={revision} is no revision that git knows here; expected a branch, a tag or a commit",
            hint=f"there are {', '.join(near)}" if near else "`git log` lists the commits",
        ) from None
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    side = Side(name="base", folder=folder.resolve(), commit=commit, dirty=False)
    for needed in MEASURING:
        if not (folder / needed).is_dir():
            raise ConfigError(
                f"BASE={revision} has no {needed}, so it cannot be measured", hint="compare with a later revision"
            )
    return side


def measuring_code_differs(base: Side) -> bool:
    """Whether what measures is not the same on both sides."""
    return bool(_git("diff", "--name-only", base.commit, "--", *MEASURING))


def collect(side: Side) -> set[str]:
    """The names of a side's benchmarks, as `test_step.py::test_added_to_a_step[session]`.

    Raises:
        BenchError: pytest cannot list them.
    """
    listed = _pytest(side, "benchmarks", "--collect-only", "-q")
    return {without_folder(line) for line in listed.splitlines() if "::" in line}


def measure(side: Side, benchmark: str, *, steps: int, saved: Path) -> Saved:
    """Run one benchmark once, in fresh processes.

    Args:
        side: Whose.
        benchmark: Its name.
        steps: Steps that a step benchmark counts.
        saved: The JSON file to write.

    Raises:
        BenchError: It failed; the message has the last lines.
    """
    options = [f"--steps={steps}", "--processes=1", f"--benchmark-json={saved}", "-q"]
    _pytest(side, f"benchmarks/{benchmark}", "--benchmark-enable", *options)
    return read_saved(saved)


def merge(side: Side, files: dict[str, list[Path]], target: Path) -> None:
    """Make one file as pytest-benchmark saves it from those of all rounds: a round there is a process here."""
    document: dict[str, Any] = {}
    for benchmark, paths in files.items():
        read = [json.loads(path.read_bytes()) for path in paths]
        document = document or {**read[0], "benchmarks": []}
        document["benchmarks"].append(_merged([one["benchmarks"][0] for one in read], read_saved(paths[0]), benchmark))
    document["commit_info"] = {**document["commit_info"], "id": side.commit, "dirty": side.dirty}
    target.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _merged(rounds: list[dict[str, Any]], first: Saved, benchmark: str) -> dict[str, Any]:
    entry: dict[str, Any] = rounds[0]
    stats = Stats()
    extra = entry["extra_info"]
    if "values" in extra:
        extra["values"] = {name: [one["extra_info"]["values"][name][0] for one in rounds] for name in extra["values"]}
        unit = SECONDS[extra["value"].rpartition("_")[2]]
        seconds = [value * unit for value in extra["values"][extra["value"]]]
    else:
        seconds = [one["stats"]["median"] for one in rounds]
    for value in seconds:
        stats.update(value)
    entry["stats"] = {**stats.as_dict(), "iterations": 1, "data": seconds}
    assert first.benchmarks.keys() == {benchmark}, f"one benchmark was asked for: {benchmark}"
    return entry


def _pytest(side: Side, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(side.folder)}
    ended = subprocess.run(
        command,
        cwd=side.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=_TIMEOUT_S,
    )
    if ended.returncode != 0:
        lines = (ended.stdout + ended.stderr).strip().splitlines()[-_LAST_LINES:]
        raise BenchError(
            f"{side.name} ({side}): pytest {' '.join(arguments[:1])} ended with exit code {ended.returncode}",
            hint="it said:\n" + "\n".join(lines),
        )
    return ended.stdout


def _git(*words: str) -> str:
    try:
        ended = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise BenchError("git is not installed, and a comparison needs it") from error
    except subprocess.CalledProcessError as error:
        raise BenchError(f"git {' '.join(words)} failed: {error.stderr.strip()}") from error
    return ended.stdout.strip()
