from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from budgets import DEFAULT_PATH
from figures import Scale, show_bounds, show_limit, show_value
from saved import read_saved
from table import table_lines
from tool import run

from harness.intervals import Interval

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
STEP = "test_step.py::test_added_to_a_step"
BUDGETS = f"""\
short_factor = 2.0
[[budget]]
what = "a session"
benchmark = "{STEP}[session]"
figure = "total_us"
limit = 10
[[budget]]
what = "a trainer"
benchmark = "{STEP}[trainer]"
figure = "total_us"
limit = 10
why = "it is cold"
[[budget]]
what = "a start"
benchmark = "test_start.py::test_import"
figure = "cpu_ms"
limit = 50
"""
PEERS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from cells import Cell
from run import as_document
def measured(total_us):
    parts = dict(bare_us=200.0, thread_us=total_us, background_us=0.0, children_us=0.0, total_us=total_us)
    return {"measured": {**parts, "wall_us": total_us, "null_us": 0.0}, "weights_equal": True, "batches_ahead": 0,
            "note": "its own loop", "version": "1.2.3"}
print(json.dumps(as_document({
    Cell("ignite", "tiny", "off"): [measured(50.0), measured(52.0), measured(54.0)],
    Cell("ignite", "tiny", "tensorboard"): [{"failed": "exit code 1: a|b"}],
    Cell("fabric", "tiny", "off"): [{"missing": "no module"}],
    Cell("fabric", "tiny", "tensorboard"): [{"missing": "no module"}],
}, processes=3, steps={"tiny": 100})))
"""
Varied = Callable[[Callable[[dict[str, Any]], object]], Path]
Ended = subprocess.CompletedProcess[str]


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Runs the tool on a saved file, with budgets of its own; it writes to `docs`."""
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))  # read on import: what it finds out about fonts
    from report import main

    some = tmp_path / "some.toml"
    some.write_text(BUDGETS, encoding="utf-8")

    def start(saved: Path, *options: str | Path, budgets: Path = some, docs: Path = tmp_path / "docs") -> Ended:
        arguments = ["report.py", str(saved), "--budgets", str(budgets), "--docs", str(docs), *map(str, options)]
        monkeypatch.setattr(sys, "argv", arguments)
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            code = run(main)
        return Ended(arguments, code, out.getvalue(), err.getvalue())

    return start


@pytest.fixture(scope="session")
def peers_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make benchmark-peers` writes it: the rows come from its code."""
    ended = _run(["-c", PEERS, str(BENCHMARKS / "peers")])
    assert ended.returncode == 0, ended.stderr
    around = {
        "format": 1,
        "date": "2026-01-31",
        "git": {"commit": "0123456789ab", "dirty": False},
        "machine": {"cpu": "Z80", "num_cpus": 3, "memory_gib": 1.0, "system": "Linux", "python": "3.11.9"},
        "versions": {"torch": "2.9.9"},
    }
    path = tmp_path_factory.mktemp("peers") / "theirs.json"
    path.write_text(json.dumps({**around, **json.loads(ended.stdout)}), encoding="utf-8")
    return path


def _run(arguments: Sequence[str], **options: Any) -> Ended:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)


def test_the_report_holds_the_figures_of_the_file_and_where_they_come_from(
    measured: Path, report: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = report(measured)
    assert ended.returncode == 0, ended.stderr
    text = (tmp_path / "docs" / "overhead.md").read_text(encoding="utf-8")
    machine = read_saved(measured).machine
    for part in (
        f"| machine | {machine.cpu}, {machine.num_cpus} cores, ",
        f"| torch, Python | {machine.torch}, {machine.python} |",
        "| commit | unversioned |",
        f"| measured | {read_saved(measured).datetime[:10]} ",
        "| a session | 8.20 µs [8.00, 9.00] | 10 µs | ok |",
        "| a trainer | 13.0 µs [11.0, 15.0] | 10 µs | OVER |",
        "| a start | not measured | 50 ms |  |",
        "- a trainer: it is cold\n",
        "| `test_added_to_a_step[session]` | 8.20 [8.00, 9.00] | 4.10 | 2.05 | 2.05 | 16.4 | 190 | 5 |",
        "| `test_added_to_a_step[session]` | 4.10 | 3.90 | 2.05 | 2.00 |",
        "`make benchmark-peers`",
    ):
        assert part in text
    assert str(measured.parent) not in text


def test_the_page_that_is_kept_is_what_the_kept_measurements_say(report: Callable[..., Ended]) -> None:
    docs = BENCHMARKS.parent / "docs"
    ended = report(BENCHMARKS / "results" / "latest.json", "--check", budgets=DEFAULT_PATH, docs=docs)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_same_measurement_gives_the_same_bytes_and_another_one_does_not(
    measured: Path, varied: Varied, report: Callable[..., Ended], tmp_path: Path
) -> None:
    def files(saved: Path, folder: Path) -> list[bytes]:
        assert report(saved, docs=folder).returncode == 0
        return [(folder / name).read_bytes() for name in ("overhead.md", "images/overhead.svg")]

    first = files(measured, tmp_path / "first")
    assert files(measured, tmp_path / "second") == first

    def slower(data: dict[str, Any]) -> None:
        data["benchmarks"][1]["extra_info"]["values"]["total_us"] = [20.0, 21.0, 22.0]

    other = files(varied(slower), tmp_path / "third")
    assert other[0] != first[0]
    assert other[1] != first[1]


def test_check_finds_a_number_that_was_typed_and_writes_nothing(
    measured: Path, report: Callable[..., Ended], tmp_path: Path
) -> None:
    text, picture = tmp_path / "docs" / "overhead.md", tmp_path / "docs" / "images" / "overhead.svg"
    assert report(measured, "--check").returncode == 1
    assert not text.exists()
    assert report(measured).returncode == 0
    assert report(measured, "--check").returncode == 0
    text.write_text(text.read_text(encoding="utf-8").replace("8.20 µs", "2.80 µs", 1), encoding="utf-8")
    ended = report(measured, "--check")
    assert (ended.returncode, str(text) in ended.stdout, str(picture) in ended.stdout) == (1, True, False)
    assert "2.80 µs" in text.read_text(encoding="utf-8")


def test_the_picture_has_a_background_of_its_own_and_no_date(
    measured: Path, report: Callable[..., Ended], tmp_path: Path
) -> None:
    assert report(measured).returncode == 0
    root = ElementTree.parse(tmp_path / "docs" / "images" / "overhead.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    background = root.find(f"{space}g[@id='figure_1']/{space}g[@id='patch_1']/{space}path")
    assert background is not None
    assert background.get("style") == "fill: #ffffff"
    shown = {"".join(text.itertext()).strip() for text in root.iter(f"{space}text")}
    assert {"null", "session", "trainer", "a session", "a trainer"} <= shown
    assert not [element for element in root.iter() if element.tag.endswith("}date")]


def test_other_frameworks_have_a_table_that_says_why_a_cell_is_empty(
    measured: Path, report: Callable[..., Ended], peers_file: Path, tmp_path: Path
) -> None:
    ended = report(measured, "--peers", peers_file)
    assert ended.returncode == 0, ended.stderr
    text = (tmp_path / "docs" / "overhead.md").read_text(encoding="utf-8")
    assert "2026-01-31 with commit 0123456789ab on Z80, 3 cores, Python 3.11.9, torch 2.9.9, in 3 processes" in text
    assert "| 52.0 [50.0, 54.0], 26.0 % | failed: exit code 1: a\\|b | yes |" in text
    assert text.count("missing: no module") == 2
    assert "its own loop" in text


def test_the_peers_beside_the_saved_file_are_read_without_being_named(
    measured: Path, report: Callable[..., Ended], peers_file: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    shutil.copy(measured, results / "latest.json")
    shutil.copy(peers_file, results / "peers.json")
    assert report(results / "latest.json").returncode == 0
    assert "Z80" in (tmp_path / "docs" / "overhead.md").read_text(encoding="utf-8")


def test_wrong_files_end_with_two_and_write_nothing(
    measured: Path, varied: Varied, report: Callable[..., Ended], peers_file: Path, tmp_path: Path
) -> None:
    def only_naming(data: dict[str, Any]) -> None:
        del data["benchmarks"][:3]

    later = tmp_path / "later.json"
    later.write_text(json.dumps({**json.loads(peers_file.read_bytes()), "format": 2}), encoding="utf-8")
    for ended, message in [
        (report(tmp_path / "none.json"), "No such file"),
        (report(measured, "--peers", tmp_path / "none.json"), "No such file"),
        (report(measured, "--peers", measured), "is no file of `make benchmark-peers`"),
        (report(measured, "--peers", later), "has format 2; expected 1"),
        (report(varied(only_naming)), "expected some to draw"),
    ]:
        assert (ended.returncode, ended.stdout) == (2, "")
        assert message in ended.stderr
        assert "hint: " in ended.stderr
    assert not (tmp_path / "docs").exists()


LATEST = BENCHMARKS / "results" / "latest.json"


@pytest.mark.skipif(not LATEST.exists(), reason="nothing has been measured yet: `make benchmark`")
def test_the_report_in_the_repository_is_the_one_that_the_kept_measurement_gives(report: Callable[..., Ended]) -> None:
    ended = report(LATEST, "--check", budgets=DEFAULT_PATH, docs=BENCHMARKS.parent / "docs")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_tool_runs_as_a_program(tmp_path: Path) -> None:
    ended = _run(
        [str(BENCHMARKS / "report.py"), str(tmp_path / "none.json")], env={**os.environ, "MPLCONFIGDIR": str(tmp_path)}
    )
    assert (ended.returncode, ended.stdout, "Traceback" in ended.stderr) == (2, "", False)


def test_the_table_has_a_line_for_each_figure_with_its_interval(measured: Path) -> None:
    lines = list(table_lines(read_saved(measured)))
    start = next(number for number, line in enumerate(lines) if line.startswith(f"{STEP}[session]"))
    assert lines[start].endswith("5  total_us              8.20 µs [8.00, 9.00]")
    assert any(line.endswith("5  bare_us               190 µs [190, 190]") for line in lines[start + 1 : start + 9])
    assert [line for line in lines if "test_parse" in line and "call_us" in line]


@pytest.mark.parametrize(
    ("figure", "value", "shown"),
    [
        ("total_us", 8.3123, "8.31 µs"),
        ("total_us", 0.0213, "21.3 ns"),
        ("total_us", -0.4, "-400 ns"),
        ("cpu_ms", 1234.0, "1.23 s"),
        ("cpu_s_per_mb", 0.25, "250 ms per MB"),
        ("written_bytes", 1.5e6, "1.50 MB"),
        ("added_pct", 0.358, "0.358 %"),
        ("ratio_to_export", 1.138, "1.14"),
        ("instructions", 123456.0, "123,456"),
        ("total_us", 0.0, "0.00 µs"),
    ],
)
def test_a_figure_is_shown_in_the_unit_its_name_ends_in(figure: str, value: float, shown: str) -> None:
    assert show_value(figure, value) == shown


def test_bounds_have_the_unit_and_digits_of_the_median_and_limits_those_they_were_given() -> None:
    assert show_bounds("total_us", Interval(low=-0.319, mid=0.468, high=1.2, confidence=0.95)) == "468 ns [-319, 1,200]"
    inf = float("inf")
    assert show_bounds("cpu_ms", Interval(low=-inf, mid=2.5, high=inf, confidence=0.95)) == "2.50 ms [one value]"
    assert [show_limit("total_us", limit) for limit in (10, 2.5, 1000)] == ["10 µs", "2.5 µs", "1 ms"]
    assert Scale(1.0, "").number(-0.0001) == "0.000"


TRIALS = {
    "format": 1, "date": "2026-01-02", "machine": "Z80", "commit": "abc", "benchmarks": ["a", "b"], "rounds": 8,
    "limit_pct": 5.0,
    "planted": [
        {"what": what, "alarm": found, "found": found, "base_us": 9.0, "smallest_seen_us": 1.5, "steps": 4000,
         "change_us": {"low": low, "mid": mid, "high": high}, "past_limit": [], "different": []}
        for what, found, low, mid, high in [
            ("a loop of 1 µs", False, -0.5, 1.0, None), ("a loop of 3 µs", True, 2, 3, 4)
        ]
    ] + [
        {"what": "an operator", "alarm": True, "found": True, "base_us": 1.0, "smallest_seen_us": 0.0, "steps": 4000,
         "figure": "added_operators", "change_us": {"low": 1, "mid": 1, "high": 1}, "past_limit": [], "different": []}
    ],
    "equal": [
        {"alarm": alarm, "found": False, "base_us": 9.0, "smallest_seen_us": 1.5, "steps": 4000,
         "change_us": {"low": -1, "mid": 0.0, "high": 1}, "past_limit": [], "different": []}
        for alarm in (False, True, False)
    ],
}  # fmt: skip


def test_the_trials_of_the_comparison_are_told_with_what_was_found_and_what_was_not(
    measured: Path, report: Callable[..., Ended], tmp_path: Path
) -> None:
    path = tmp_path / "trials.json"
    path.write_text(json.dumps(TRIALS), encoding="utf-8")
    assert report(measured, "--trials", path).returncode == 0
    text = (tmp_path / "docs" / "overhead.md").read_text(encoding="utf-8")
    assert "copy of itself, 3 times, 4,000 steps in each process: 1 alarms." in text
    assert "slowdown that was found, with 4,000 steps in each process: a loop of 3 µs, 3.0 µs on top of 9.0 µs." in text
    assert "| a loop of 1 µs | +1.0 | 1.5 | not found |" in text
    assert "| a loop of 3 µs | +3.0 [2.0, 4.0] | 1.5 | found by total_us |" in text
    assert "| an operator | +1 operator | 1 operator | found by added_operators |" in text
    path.write_text(json.dumps({**TRIALS, "format": 2}), encoding="utf-8")
    assert "has format 2; expected 1" in report(measured, "--trials", path).stderr
    assert "is no file of `make benchmark-gate`" in report(measured, "--trials", measured).stderr
