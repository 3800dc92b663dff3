from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.cli.run_files import Evaluation, RunFiles
from harness.cli.summary_table import format_pct, format_us, next_lines, shown_path, summary_lines
from harness.report.summary import RunSummary
from harness.run.directory import RunDirectory
from harness.run.manifest import Artifact, Manifest

ROOT = Path("/data/runs")
COST = {
    "training_thread_pct": 2.5,
    "background_pct": 4.0,
    "steps_ns": 900,
    "training_ns": 1000,
    "training_thread_ns": {"loop": 5, "checkpoint": 20, "capture": 0},
}


def summary(**changes: Any) -> RunSummary:
    values: dict[str, Any] = {
        "num_steps": 100,
        "num_counted": 90,
        "num_left_out": 10,
        "counts_captured": False,
        "median_step_us": 1500.0,
        "p95_step_us": 2500.0,
        "steps_per_s": 640.0,
        "shares_pct": {
            "data": 10.0,
            "forward": 40.0,
            "backward": 30.0,
            "optimizer": 15.0,
            "harness": 0.25,
            "other": 0.4,
            "augment": 4.35,
        },
        "own_cost_pct": 0.3,
        "eval_s": 0.0,
    }
    return RunSummary(**{**values, **changes})


def files(*, steps: RunSummary | None = None, root: Path = ROOT, **manifest: Any) -> RunFiles:
    values: dict[str, Any] = {"run_name": "foo", "name_source": "run_name", "status": "finished", "own_cost": COST}
    return RunFiles(
        directory=RunDirectory(root=root, run_name="foo", resumed=True, lock=None),
        manifest=Manifest(**{**values, **manifest}),
        steps=steps,
        steps_error=None,
        evaluation=Evaluation(step=100, metrics={"loss": 0.125, "accuracy": "NaN"}),
    )


def rows(run: RunFiles) -> dict[str, list[str]]:
    """The table by its names."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in summary_lines(run):
        name = line[:11].strip() or name
        found.setdefault(name, []).append(line[11:].strip())
    return found


def artifacts(kind: str, count: int) -> list[Artifact]:
    return [Artifact(kind=kind, path=f"{kind}s/{n}.x", size_bytes=1500, step=n) for n in range(1, count + 1)]


def test_the_table_says_where_the_time_went() -> None:
    table = rows(files(steps=summary()))
    assert table["run"] == ["foo (finished)"]
    assert table["steps"] == ["100 (10 in or next to a capture window, left out of the times below)"]
    assert table["step time"] == ["median 1.5 ms, p95 2.5 ms, 640 steps/s"]
    assert table["evaluation"] == ["loss 0.125, accuracy NaN (after step 100)"]


def test_small_phases_are_left_out_and_the_main_ones_never() -> None:
    (phases,) = rows(files(steps=summary()))["phases"]
    assert phases == "data 10.0 %, forward 40.0 %, backward 30.0 %, optimizer 15.0 %, harness 0.25 %, augment 4.3 %"
    (phases,) = rows(files(steps=summary(shares_pct={})))["phases"]
    assert phases.startswith("data 0.00 %, forward 0.00 %")


def test_own_cost_names_the_dearest_part_first_and_leaves_out_what_cost_nothing() -> None:
    assert rows(files(steps=summary()))["own cost"] == [
        "2.5 % of the training time, on the training thread: checkpoint 2.0 %, loop 0.50 %",
        "4.0 % of it as CPU time of threads and child processes",
    ]


def test_a_killed_run_has_the_cost_its_step_file_tells() -> None:
    assert rows(files(steps=summary(), own_cost={}))["own cost"] == [
        "0.30 % of the time in steps; no account of the rest"
    ]
    assert rows(files(steps=None, own_cost={}))["own cost"] == ["not known"]


def test_steps_that_were_all_captured_are_said_to_be() -> None:
    (steps,) = rows(files(steps=summary(counts_captured=True, num_left_out=0)))["steps"]
    assert "all in or next to a capture window" in steps


def test_a_run_without_a_single_step_has_a_table_too() -> None:
    empty = summary(num_steps=0, median_step_us=None, p95_step_us=None, steps_per_s=None, shares_pct={})
    table = rows(files(steps=empty, status="failed"))
    assert table["run"] == ["foo (failed)"]
    assert table["steps"] == ["0"]
    assert "step time" not in table
    assert table["traces"] == table["checkpoints"] == ["none"]


def test_of_many_checkpoints_the_newest_are_shown_with_how_many_there_are() -> None:
    shown = rows(files(artifacts=artifacts("checkpoint", 30)))["checkpoints"]
    assert shown[0] == "30, the last 4 of them:"
    assert shown[-1] == "/data/runs/foo/checkpoints/30.x (1.5 kB)"
    assert len(shown) == 5


def test_problems_are_shown_only_where_there_are_some() -> None:
    assert "problems" not in rows(files(steps=summary()))
    health = {"sampler": {"died": True, "last_error": "ValueError: \x1b[2J"}}
    assert rows(files(health=health))["problems"] == ["the system sampler died (the last: ValueError: \\x1b[2J)"]


def test_next_commands_name_the_root_where_it_is_not_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/harness")
    elsewhere = "\n".join(next_lines(files(root=Path("/data/my runs"), artifacts=artifacts("trace", 1))))
    assert "harness show foo --root '/data/my runs'" in elsewhere
    assert "make tensorboard ROOT='/data/my runs'" in elsewhere
    assert "'/data/my runs/foo/traces/1.x'" not in elsewhere
    assert "/data/my runs/foo/traces/1.x" in elsewhere
    here = "\n".join(next_lines(files(root=Path.cwd() / "runs")))
    assert "--root" not in here
    assert "perfetto" not in here


def test_paths_are_shown_as_people_type_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "runs" / "foo") == "runs/foo"
    assert shown_path(Path("/somewhere/else")) == "/somewhere/else"


def test_numbers_that_are_not_there_are_a_dash() -> None:
    assert (format_us(None), format_pct(None)) == ("-", "-")
    assert (format_us(1234.5), format_pct(0.004), format_pct(12.34)) == ("1.23 ms", "0.00 %", "12.3 %")
