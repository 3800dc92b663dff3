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
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pytest_benchmark.stats import Stats
from recorded import SECONDS
from saved import without_folder

from harness.errors import BenchError, ConfigError

ROOT = Path(__file__).parents[1]
MEASURING = ("benchmarks", "harness/bench")
"""What measures: paths whose changes make two sides hard to compare."""
_LAST_LINES = 12
_TIMEOUT_S = 1800
_MAX_TIME_S = 0.3
"""For what pytest-benchmark times itself; other processes are what makes the figure sure, not more rounds of one."""


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


def measure(side: Side, benchmarks: Sequence[str], *, steps: int, saved: Path) -> None:
    """Run some benchmarks once, each in a fresh process of its own where it is one of steps.

    Args:
        side: Whose.
        benchmarks: Their names.
        steps: Steps that a step benchmark counts.
        saved: The JSON file to write.

    Raises:
        BenchError: One failed; the message has the last lines.
    """
    options = [f"--steps={steps}", "--processes=1", f"--benchmark-max-time={_MAX_TIME_S}", f"--benchmark-json={saved}"]
    _pytest(side, *(f"benchmarks/{name}" for name in benchmarks), "--benchmark-enable", "-q", *options)


def merge(side: Side, paths: Sequence[Path], target: Path) -> None:
    """Make one file as pytest-benchmark saves it from those of all rounds: a round there is a process here."""
    read = [json.loads(path.read_bytes()) for path in paths]
    rounds: dict[str, list[dict[str, Any]]] = {}
    for document in read:
        for entry in document["benchmarks"]:
            rounds.setdefault(entry["fullname"], []).append(entry)
    commit = {**read[0]["commit_info"], "id": side.commit, "dirty": side.dirty}
    merged = {**read[0], "commit_info": commit, "benchmarks": [_merged(each) for each in rounds.values()]}
    target.write_text(json.dumps(merged, indent=1), encoding="utf-8")


def _merged(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    extra, stats = rounds[0]["extra_info"], Stats()
    if "values" in extra:
        names = extra["values"]
        extra = {**extra, "values": {name: [one["extra_info"]["values"][name][0] for one in rounds] for name in names}}
        unit_s = SECONDS[extra["value"].rpartition("_")[2]]
        times_s = [value * unit_s for value in extra["values"][extra["value"]]]
    else:
        times_s = [one["stats"]["median"] for one in rounds]
    for time_s in times_s:
        stats.update(time_s)
    return {
        **rounds[0],
        "extra_info": extra,
        "stats": {**stats.as_dict(), "iterations": 1, "data": times_s},
    }


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
