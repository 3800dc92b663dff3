from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from budgets import DEFAULT_PATH, read_budgets
from check import main, node_ids

from harness.errors import ConfigError

ROOT = DEFAULT_PATH.parents[1]
STEP = "test_step.py::test_added_to_a_step"
Varied = Callable[[Callable[[dict[str, Any]], object]], Path]


@pytest.fixture
def budget_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes budgets, given as dictionaries, with a short form that is twice as wide."""

    def write(*budgets: dict[str, Any], head: str = "short_factor = 2.0\n") -> Path:
        path = tmp_path / "some.toml"
        lines = [head]
        for budget in budgets:
            lines.append("[[budget]]")
            for key, value in {"what": "a step", "figure": "total_us", **budget}.items():
                lines.append(f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


Budgets = Callable[..., Path]


def test_budgets_that_hold_are_said_and_end_with_zero(
    measured: Path, budget_file: Budgets, capsys: pytest.CaptureFixture[str]
) -> None:
    path = budget_file({"benchmark": f"{STEP}[session]", "limit": 10, "what": "a session"})
    assert main([str(measured), "--budgets", str(path)]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("a session  8.20 µs [8.00, 9.00]") and "10 µs" in line]
    assert "breach" not in out


def test_each_broken_budget_has_a_line_with_figure_interval_and_budget(
    measured: Path, budget_file: Budgets, capsys: pytest.CaptureFixture[str]
) -> None:
    path = budget_file(
        {"benchmark": f"{STEP}[trainer]", "limit": 10},
        {"benchmark": f"{STEP}[session]", "limit": 10},
        {"benchmark": f"{STEP}[trainer]", "limit": 6, "figure": "thread_us"},
    )
    assert main([str(measured), "--budgets", str(path)]) == 1
    breaches = [line for line in capsys.readouterr().out.splitlines() if line.startswith("breach: ")]
    assert breaches == [
        f"breach: {STEP}[trainer]: total_us is 13.0 µs [11.0, 15.0], budget 10 µs",
        f"breach: {STEP}[trainer]: thread_us is 6.50 µs [5.50, 7.50], budget 6 µs",
    ]


def test_the_median_decides_and_the_interval_says_how_surely(
    measured: Path, budget_file: Budgets, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit, code, verdict in [
        (10, 1, "OVER"),
        (12.5, 1, "OVER, not surely"),
        (13.0, 0, "ok, not surely"),
        (16, 0, "ok"),
    ]:
        path = budget_file({"benchmark": f"{STEP}[trainer]", "limit": limit})
        assert main([str(measured), "--budgets", str(path)]) == code
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a step ")]
        assert [row.split("µs  ")[-1] for row in rows] == [verdict]


def test_a_budget_can_hold_the_difference_of_two_benchmarks(
    measured: Path, budget_file: Budgets, capsys: pytest.CaptureFixture[str]
) -> None:
    difference = {"benchmark": f"{STEP}[trainer]", "minus": f"{STEP}[session]"}
    assert main([str(measured), "--budgets", str(budget_file({**difference, "limit": 5}))]) == 0
    assert main([str(measured), "--budgets", str(budget_file({**difference, "limit": 4.5}))]) == 1
    out = capsys.readouterr().out
    assert f"breach: {STEP}[trainer] minus {STEP}[session]: total_us is 4.80 µs [" in out


def test_the_short_form_holds_the_budgets_marked_short_against_wider_limits(
    measured: Path, budget_file: Budgets, capsys: pytest.CaptureFixture[str]
) -> None:
    def short(limit: float, extra: float) -> int:
        marked = {"benchmark": f"{STEP}[trainer]", "limit": limit, "short": True, "short_extra": extra}
        path = budget_file(marked, {"benchmark": "test_far.py::test_away", "limit": 1})
        return main([str(measured), "--short", "--budgets", str(path)])

    assert (short(6, 0.5), short(6, 1.0), short(6.5, 0.0)) == (1, 0, 0)
    assert "budget 12.5 µs" in capsys.readouterr().out


def test_an_unknown_benchmark_is_an_error_with_the_nearest_name(measured: Path, budget_file: Budgets) -> None:
    path = budget_file({"benchmark": f"{STEP}[sesion]", "limit": 10})
    with pytest.raises(ConfigError, match="no benchmark .*sesion") as caught:
        main([str(measured), "--budgets", str(path)])
    assert f"nearest there is: {STEP}[session]" in str(caught.value)
    with pytest.raises(ConfigError, match="no benchmark 'zzz'"):
        main([str(measured), "--budgets", str(budget_file({"benchmark": f"{STEP}[null]", "minus": "zzz", "limit": 1}))])


def test_an_unknown_figure_is_an_error_with_the_nearest_name(measured: Path, budget_file: Budgets) -> None:
    path = budget_file({"benchmark": f"{STEP}[session]", "figure": "totl_us", "limit": 10})
    with pytest.raises(ConfigError, match="no figure 'totl_us'.*\n.*nearest there is: total_us"):
        main([str(measured), "--budgets", str(path)])


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"benchmark": "a", "limit": 1, "limt": 2}, "unknown field `limt`"),
        ({"benchmark": "a"}, "missing required field `limit`"),
        ({"benchmark": "a", "limit": 0}, "limit=0"),
        ({"benchmark": "a", "limit": 1, "short_extra": -1}, "short_extra=-1"),
        ({"benchmark": "a", "limit": "10 µs"}, "budget\\[0\\].limit"),
    ],
)
def test_a_budget_with_a_wrong_key_or_value_is_refused(
    budget_file: Budgets, budget: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_budgets(budget_file(budget))


def test_a_budget_file_that_is_none_is_refused(tmp_path: Path, budget_file: Budgets) -> None:
    fine = {"benchmark": "a", "limit": 1}
    with pytest.raises(ConfigError, match="No such file"):
        read_budgets(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="missing required field `budget`"):
        read_budgets(budget_file())
    with pytest.raises(ConfigError, match="holds no"):
        read_budgets(budget_file(head="short_factor = 2\nbudget = []\n"))
    with pytest.raises(ConfigError, match="is no budget file"):
        read_budgets(budget_file(head="short_factor"))
    with pytest.raises(ConfigError, match="expected 1 or more"):
        read_budgets(budget_file(fine, head="short_factor = 0.5\n"))
    with pytest.raises(ConfigError, match="two budgets for total_us of a"):
        read_budgets(budget_file(fine, fine))


def test_another_machine_is_refused_unless_forced(
    varied: Varied, budget_file: Budgets, capsys: pytest.CaptureFixture[str]
) -> None:
    path = varied(lambda data: data["machine_info"].update(torch="1.0.0"))
    budgets = budget_file({"benchmark": f"{STEP}[session]", "limit": 10})
    with pytest.raises(ConfigError, match="torch 1.0.0"):
        main([str(path), "--budgets", str(budgets)])
    assert main([str(path), "--budgets", str(budgets), "--force"]) == 0
    assert "torch 1.0.0" in capsys.readouterr().out


def test_wrong_use_ends_with_two_and_says_what_to_do(tmp_path: Path) -> None:
    for arguments, message in [
        ([str(tmp_path / "none.json")], "error: "),
        ([], "SAVED.json is missing"),
        (["--long"], "unrecognized arguments"),
    ]:
        command = [sys.executable, str(ROOT / "benchmarks" / "check.py"), *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr


def test_the_budgets_that_ship_name_benchmarks_of_the_suite() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q", "-p", "no:cacheprovider"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    unknown = [name for name in node_ids(read_budgets(), short=False) if name not in listed]
    assert not unknown, f"budgets.toml names what `pytest benchmarks` does not collect: {unknown}"


def test_the_names_for_pytest_come_once_each_and_the_short_ones_are_fewer() -> None:
    budgets = read_budgets()
    names = node_ids(budgets, short=False)
    assert len(names) == len(set(names))
    assert set(node_ids(budgets, short=True)) < set(names)
