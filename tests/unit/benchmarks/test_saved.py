from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from publish import publish
from saved import CALL_FIGURE, read_saved, refuse_other_machine, stretches, this_machine, without_folder

from harness.errors import ConfigError

Varied = Callable[[Callable[[dict[str, Any]], object]], Path]
SESSION = "test_step.py::test_added_to_a_step[session]"


def test_recorded_figures_are_read_by_name_one_for_each_round(measured: Path) -> None:
    session = read_saved(measured).benchmarks[SESSION]
    assert (session.group, session.value, session.timer) == ("step", "total_us", "clock")
    assert session.values["total_us"] == [8.0, 8.1, 8.2, 8.4, 9.0]
    assert session.values["bare_us"] == [190] * 5
    interval = session.interval("total_us")
    assert 8.0 <= interval.low <= interval.mid == 8.2 <= interval.high <= 9.0


def test_what_pytest_benchmark_timed_is_the_time_of_a_call_in_microseconds(measured: Path) -> None:
    parse = read_saved(measured).benchmarks["test_step.py::test_parse"]
    assert parse.value == CALL_FIGURE
    assert len(parse.values[CALL_FIGURE]) == 20
    saved_median_s = json.loads(measured.read_bytes())["benchmarks"][-1]["stats"]["median"]
    assert parse.interval(CALL_FIGURE).mid == pytest.approx(saved_median_s * 1e6)


def test_benchmarks_come_in_the_order_they_ran_and_without_their_folder(measured: Path) -> None:
    cases = [f"test_step.py::test_added_to_a_step[{case}]" for case in ("null", "session", "trainer")]
    assert list(read_saved(measured).benchmarks) == [*cases, "test_step.py::test_parse"]
    assert without_folder("a/b/test_x.py::test_y[c/d]") == "test_x.py::test_y[c/d]"


def test_thousands_of_rounds_count_as_the_medians_of_fifty_stretches() -> None:
    values = [float(number // 20) for number in range(1007)]
    assert stretches(values) == [float(number) for number in range(50)]
    assert stretches(values[:99]) == values[:99]


def test_what_was_measured_here_is_of_this_machine(measured: Path) -> None:
    saved = read_saved(measured)
    assert saved.machine == this_machine()
    assert saved.machine.python == platform.python_version()
    assert (saved.commit.id, saved.commit.dirty) == ("unversioned", False)
    refuse_other_machine(saved, this_machine())


@pytest.mark.parametrize(
    ("key", "value"), [("torch", "1.0.0"), ("num_cpus", 96), ("python", "3.9.1"), ("machine", "riscv64")]
)
def test_another_machine_or_version_is_refused_naming_both(
    measured: Path, varied: Varied, key: str, value: object
) -> None:
    here, elsewhere = read_saved(measured), read_saved(varied(lambda data: data["machine_info"].update({key: value})))
    with pytest.raises(ConfigError, match=f"{key} differ") as caught:
        refuse_other_machine(elsewhere, here)
    for part in (str(elsewhere.machine), str(here.machine), str(elsewhere.path), str(here.path)):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="this machine: "):
        refuse_other_machine(elsewhere, this_machine())
    refuse_other_machine(elsewhere, here, force=True)


def test_another_processor_is_refused_and_another_patch_of_python_is_not(measured: Path, varied: Varied) -> None:
    here = read_saved(measured)
    with pytest.raises(ConfigError, match="cpu differ"):
        refuse_other_machine(read_saved(varied(lambda data: data["machine_info"]["cpu"].update(brand_raw="Z80"))), here)
    patched = ".".join([*platform.python_version_tuple()[:2], "99"])
    refuse_other_machine(read_saved(varied(lambda data: data["machine_info"].update(python=patched))), here)


def _lose_values(data: dict[str, Any]) -> None:
    data["benchmarks"][1]["extra_info"]["values"]["wall_us"] = []


def _lose_rounds(data: dict[str, Any]) -> None:
    """As --benchmark-autosave without --benchmark-save-data does."""
    del data["benchmarks"][3]["stats"]["data"]


def _twice(data: dict[str, Any]) -> None:
    data["benchmarks"].append(data["benchmarks"][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["machine_info"].pop("torch"), "`torch`"),
        (lambda data: data.pop("commit_info"), "`commit_info`"),
        (lambda data: data["benchmarks"].clear(), "holds no benchmark"),
        (lambda data: data["benchmarks"][0]["extra_info"].update(value="best_us"), "no values of 'best_us'"),
        (lambda data: data["benchmarks"][0]["extra_info"].update(values={"total_us": "8"}), "null.* are malformed"),
        (_lose_values, "session.* has no values of wall_us"),
        (_lose_rounds, "test_parse has no values of call_us"),
        (_twice, "two benchmarks called .*null"),
    ],
)
def test_a_file_that_lacks_something_is_refused_by_name(
    varied: Varied, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = varied(change)
    with pytest.raises(ConfigError, match=message) as caught:
        read_saved(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"[]", b"not JSON", b"\xff\xfe", b'{"a": NaN}'])
def test_what_is_no_saved_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "saved.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="saved.json is not a file of this suite"):
        read_saved(path)


def test_a_missing_file_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        read_saved(tmp_path / "none.json")
    assert "make benchmark" in str(caught.value)


def test_the_published_file_says_the_same_of_the_benchmarks_and_nothing_of_who_measured(
    varied: Varied, tmp_path: Path
) -> None:
    secrets = {"node": "workstation-of-ada", "release": "6.1.0-of-ada", "processor": "of-ada"}

    def tell(data: dict[str, Any]) -> None:
        data["machine_info"].update(secrets)
        data["commit_info"].update(project="folder-of-ada", branch="wish-of-ada")

    path, kept = varied(tell), tmp_path / "results" / "latest.json"
    size_bytes = publish(path, kept)
    assert size_bytes == kept.stat().st_size
    assert "of-ada" not in kept.read_text(encoding="utf-8")
    before, after = read_saved(path), read_saved(kept)
    assert (after.machine, after.commit, after.datetime) == (before.machine, before.commit, before.datetime)
    assert after.benchmarks[SESSION] == before.benchmarks[SESSION]
    parse = "test_step.py::test_parse"
    assert after.benchmarks[parse].values[CALL_FIGURE] == pytest.approx(before.benchmarks[parse].values[CALL_FIGURE])


def test_publishing_what_is_published_changes_nothing(measured: Path, tmp_path: Path) -> None:
    publish(measured, tmp_path / "once.json")
    publish(tmp_path / "once.json", tmp_path / "twice.json")
    assert (tmp_path / "once.json").read_bytes() == (tmp_path / "twice.json").read_bytes()


def test_a_path_of_this_machine_is_not_published(varied: Varied, tmp_path: Path) -> None:
    path = varied(lambda data: data["benchmarks"][0]["extra_info"].update(file=str(Path.cwd() / "x")))
    with pytest.raises(ConfigError, match="holds a path of this machine"):
        publish(path, tmp_path / "latest.json")
    assert not (tmp_path / "latest.json").exists()


def test_pytest_benchmark_compares_what_is_published(measured: Path, tmp_path: Path) -> None:
    publish(measured, tmp_path / "latest.json")
    command = [sys.executable, "-m", "pytest_benchmark", "compare", str(measured), str(tmp_path / "latest.json")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("test_added_to_a_step[session]") == 2
