from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare
import pytest
import sides
from compare import judge_files, main, table_lines
from saved import read_saved
from tool import run

from harness.errors import ConfigError

ROOT = Path(__file__).parents[3]
STEP = "test_step.py::test_added_to_a_step"
SUITE = """
import random
import time

import pytest
from recorded import clock, record

from harness.bench import __doc__ as _found  # the side's own package


@pytest.mark.benchmark(group="step", timer=clock)
@pytest.mark.parametrize("case", ["session", "trainer"])
def test_added_to_a_step(benchmark, case, processes, steps):
    assert (processes, steps) == (1, 50)
    drawn = random.Random(time.perf_counter_ns())

    def measure():
        total = (9.0 if case == "session" else TRAINER) + drawn.uniform(-0.2, 0.2)
        return {"bare_us": 190, "total_us": total}

    record(benchmark, measure, value="total_us", rounds=processes)
"""
Doctored = Callable[..., Path]


@pytest.fixture
def doctored(varied: Callable[..., Path], tmp_path: Path) -> Doctored:
    """Writes a file of rounds: values by case."""

    def make(name: str, change: Callable[[dict[str, Any]], object] | None = None, **cases: list[float]) -> Path:
        def put(data: dict[str, Any]) -> None:
            kept = [one for one in data["benchmarks"] if one["params"] and one["params"]["case"] in cases]
            for one in kept:
                one["extra_info"]["values"] = {"total_us": cases[one["params"]["case"]]}
            data["benchmarks"] = kept
            if change is not None:
                change(data)

        return varied(put).rename(tmp_path / f"{name}.json")

    return make


def _around(mid: float, seed: int, *, rounds: int = 10, spread: float = 0.3) -> list[float]:
    drawn = random.Random(seed)
    return [mid + drawn.gauss(0, spread) for _ in range(rounds)]


def test_slower_faster_and_no_difference_are_told_apart(doctored: Doctored) -> None:
    base = doctored("base", null=_around(10, 1), session=_around(10, 2), trainer=_around(10, 3))
    new = doctored("new", null=_around(13, 4), session=_around(8, 5), trainer=_around(10, 6))
    null, session, trainer = judge_files(base, new, limit_pct=5)
    assert (null.verdict(5), session.verdict(5)) == ("SLOWER by more than 5 %", "faster")
    assert trainer.verdict(5).startswith("no difference seen (")
    assert [one.is_past_limit for one in (null, session, trainer)] == [True, False, False]
    assert 2.5 < null.change.low <= null.change.mid <= null.change.high < 3.5
    assert trainer.change.low < 0 < trainer.change.high
    lines = list(table_lines([null, session, trainer], 5))
    assert f"{STEP}[null]" in lines[1]
    assert "  +" in lines[1]
    assert "-21.1 % [-25.3, -17.4]" in lines[2]


def test_a_slowdown_below_the_limit_is_said_and_tolerated(doctored: Doctored) -> None:
    base = doctored("base", session=_around(100, 2))
    new = doctored("new", session=_around(103, 5))
    (one,) = judge_files(base, new, limit_pct=5)
    assert (one.verdict(5), one.is_past_limit) == ("slower", False)
    (one,) = judge_files(base, new, limit_pct=2)
    assert one.is_past_limit


def test_what_swings_with_both_sides_does_not_hide_a_difference(doctored: Doctored) -> None:
    swing = [0.0, 40.0, -30.0, 80.0, 10.0, -50.0, 60.0, 20.0, -20.0, 30.0]
    base = doctored("base", session=[100 + s + n for s, n in zip(swing, _around(0, 1), strict=True)])
    new = doctored("new", session=[112 + s + n for s, n in zip(swing, _around(0, 2), strict=True)])
    (one,) = judge_files(base, new, limit_pct=5)
    assert one.is_past_limit


def test_two_of_three_hundred_comparisons_of_equal_sides_raise_an_alarm_at_most(doctored: Doctored) -> None:
    alarms = 0
    for seed in range(300):
        pairs = [
            ("a", "total_us", _around(9, 10 * seed + k, spread=0.5), _around(9, 10 * seed + 5 + k, spread=0.5))
            for k in range(4)
        ]
        alarms += any(one.is_past_limit for one in compare._judge(pairs, 5))
    assert alarms <= 2


def test_a_step_that_waits_is_found_by_the_wall_clock(doctored: Doctored) -> None:
    def with_wall(wall_us: float) -> Callable[[dict[str, Any]], None]:
        def put(data: dict[str, Any]) -> None:
            for one in data["benchmarks"]:
                one["extra_info"]["values"]["wall_us"] = _around(wall_us, 8)

        return put

    base = doctored("base", with_wall(9), session=_around(9, 1))
    new = doctored("new", with_wall(900), session=_around(7, 2))
    cpu, wall = judge_files(base, new, limit_pct=5)
    assert (cpu.figure, cpu.verdict(5)) == ("total_us", "faster")
    assert (wall.figure, wall.verdict(5)) == ("wall_us", "SLOWER by more than 5 %")


def test_files_of_other_machines_or_other_rounds_are_refused(doctored: Doctored) -> None:
    base = doctored("base", session=_around(9, 1))
    other = doctored("other", lambda data: data["machine_info"].update(torch="1.0.0"), session=_around(9, 1))
    with pytest.raises(ConfigError, match="torch 1.0.0"):
        judge_files(base, other, limit_pct=5)
    assert len(judge_files(base, other, limit_pct=5, force=True)) == 1
    with pytest.raises(ConfigError, match="do not hold the same rounds"):
        judge_files(base, doctored("short", session=_around(9, 1, rounds=9)), limit_pct=5)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of this project's package with a small suite; `main` has a trainer of 12 µs, the tree one of 9."""
    folder = tmp_path / "repository"
    shutil.copytree(ROOT / "harness", folder / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "benchmarks").mkdir()
    for name in ("conftest.py", "recorded.py", "budgets.toml"):
        shutil.copy(ROOT / "benchmarks" / name, folder / "benchmarks" / name)
    (folder / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\npythonpath = ["benchmarks"]\naddopts = "--benchmark-disable"\n'
    )
    (folder / ".gitignore").write_text("build/\n__pycache__/\n")
    _write_suite(folder, "9.0")
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "base"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@example.com", *words], cwd=folder, check=True)
    monkeypatch.setattr(sides, "ROOT", folder)
    monkeypatch.setattr(compare, "OUTPUT", folder / "build" / "benchmark-compare")
    return folder


def _write_suite(folder: Path, trainer_us: str) -> None:
    (folder / "benchmarks" / "test_step.py").write_text(SUITE.replace("TRAINER", trainer_us))


@pytest.mark.slow
def test_both_sides_are_checked_out_measured_in_turns_and_written_for_pytest_benchmark(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_suite(repository, "12.0")
    options = ["--rounds=8", "--steps=50", f"--benchmark={STEP}[session]", f"--benchmark={STEP}[trainer]"]
    assert main(["main", *options]) == 1
    said = capsys.readouterr()
    session, trainer = said.out.splitlines()[1:]
    assert "no difference seen" in session
    assert "SLOWER by more than 5 %" in trainer
    assert "with changes" in said.err
    assert "the measuring code differs" in said.err
    output = repository / "build" / "benchmark-compare"
    base, new = (read_saved(output / f"{name}.json") for name in ("base", "new"))
    assert (base.commit.dirty, new.commit.dirty) == (False, True)
    assert base.commit.id == new.commit.id != "unversioned"
    assert [len(one.values["total_us"]) for one in base.benchmarks.values()] == [8, 8]
    assert json.loads((output / "comparison.json").read_bytes())["rounds"] == 8
    listed = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", output / "base.json", output / "new.json"],
        capture_output=True, text=True, check=True, cwd=repository,
    )  # fmt: skip
    assert "test_added_to_a_step[trainer]" in listed.stdout


def _code_and_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
    assert run(main) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_wrong_use_is_told_before_anything_is_measured(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "branch", "feature-a"], cwd=repository, check=True)
    assert "BASE=feature-b is no revision" in (said := _code_and_error(monkeypatch, capsys, "feature-b"))
    assert "feature-a" in said
    said = _code_and_error(monkeypatch, capsys, "main", "--benchmark=test_step.py::test_nothing")
    assert "test_step.py::test_nothing is not in the suite" in said
    said = _code_and_error(monkeypatch, capsys, "main", "--rounds=3", f"--benchmark={STEP}[session]")
    assert "--rounds=3 is too few for 1 benchmarks" in said
    assert "--rounds=7" in said


def test_a_side_that_fails_is_named_with_what_it_said(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = repository / "benchmarks" / "test_step.py"
    suite.write_text(suite.read_text() + "\n\nraise RuntimeError('the tree is broken')\n")
    said = _code_and_error(monkeypatch, capsys, "main", f"--benchmark={STEP}[session]")
    assert "new (" in said
    assert "the tree is broken" in said


def test_a_base_without_the_suite_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run([*git, "checkout", "-q", "--orphan", "empty"], cwd=repository, check=True)
    subprocess.run([*git, "rm", "-rqf", "--cached", "."], cwd=repository, check=True)
    subprocess.run([*git, "add", "pyproject.toml"], cwd=repository, check=True)
    subprocess.run([*git, "commit", "-q", "-m", "empty"], cwd=repository, check=True)
    assert "BASE=empty has no benchmarks" in _code_and_error(monkeypatch, capsys, "empty")


@pytest.mark.parametrize(
    "arguments", [[], ["main", "--rounds=0"], ["main", "--max-slowdown=-1%"], ["main", "--rounds=x"]]
)
def test_wrong_options_end_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err
