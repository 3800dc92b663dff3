from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import pytest
from peers_file import Peers, read_peers

PEERS = Path(__file__).parents[3] / "benchmarks" / "peers"
Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a module of the peers' folder; their short names are free again afterwards."""
    names = [path.stem for path in PEERS.glob("*.py")]
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    monkeypatch.syspath_prepend(str(PEERS))
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)


def measured(total_us: float, *, background_us: float = 0.0, weights_equal: bool = True) -> dict[str, Any]:
    """As `measure.py` writes it."""
    parts = {"bare_us": 200.0, "thread_us": total_us - background_us, "background_us": background_us}
    rest = {"children_us": 0.0, "total_us": total_us, "wall_us": total_us, "null_us": 0.5}
    around = {"weights_equal": weights_equal, "batches_ahead": 0, "note": "as usual", "version": "1.2.3"}
    return {"measured": {**parts, **rest}, **around}


@pytest.fixture
def document(load: Load) -> dict[str, Any]:
    """Three frameworks: one measured, one that fails once, one that is missing."""
    cell = load("cells").Cell
    outcomes = {
        cell("ignite", "tiny", "off"): [measured(50.0), measured(54.0), measured(52.0)],
        cell("ignite", "tiny", "tensorboard"): [measured(352.0, background_us=80.0)] * 3,
        cell("fabric", "tiny", "off"): [measured(60.0), {"failed": "exit code 1: it broke"}],
        cell("fabric", "tiny", "tensorboard"): [measured(300.0)],
        cell("lightning", "tiny", "off"): [{"missing": "no module"}],
        cell("lightning", "tiny", "tensorboard"): [{"missing": "no module"}],
    }
    return dict(load("run").as_document(outcomes, processes=3, steps={"tiny": 100}))


def row(document: dict[str, Any], framework: str, case: str) -> dict[str, Any]:
    (found,) = [each for each in document["rows"] if (each["framework"], each["case"]) == (framework, case)]
    return dict(found)


def test_a_row_holds_the_median_of_the_processes_its_interval_and_what_each_measured(document: dict[str, Any]) -> None:
    off = row(document, "ignite", "off")
    assert off["figures"]["total_us"] == {"low": 50.0, "mid": 52.0, "high": 54.0}
    assert off["figures"]["added_pct"]["mid"] == 26.0
    assert off["values"]["total_us"] == [50.0, 54.0, 52.0]
    assert (off["status"], off["message"], off["num_processes"]) == ("measured", None, 3)
    assert (off["weights_equal"], off["batches_ahead"], off["note"]) == (True, 0, "as usual")


def test_what_a_case_costs_on_top_is_its_difference_to_off_of_the_same_framework(document: dict[str, Any]) -> None:
    assert row(document, "ignite", "tensorboard")["on_top_us"] == {"low": 298.0, "mid": 300.0, "high": 302.0}
    assert row(document, "fabric", "tensorboard")["on_top_us"] == {"low": None, "mid": 240.0, "high": None}
    assert row(document, "ignite", "off")["on_top_us"] is None
    assert row(document, "lightning", "tensorboard")["on_top_us"] is None


def test_a_cell_that_failed_once_says_why_and_keeps_what_was_measured(document: dict[str, Any]) -> None:
    failed = row(document, "fabric", "off")
    assert (failed["status"], failed["message"]) == ("failed", "exit code 1: it broke")
    assert (failed["num_processes"], failed["values"]["total_us"]) == (1, [60.0])
    assert failed["figures"]["total_us"] == {"low": None, "mid": 60.0, "high": None}


def test_a_framework_that_is_missing_has_rows_without_figures_and_no_version(document: dict[str, Any]) -> None:
    missing = row(document, "lightning", "off")
    assert (missing["status"], missing["message"], missing["num_processes"]) == ("missing", "no module", 0)
    assert (missing["figures"], missing["values"], missing["weights_equal"]) == ({}, {}, None)
    versions = {each["name"]: each["version"] for each in document["frameworks"]}
    assert versions == {"ignite": "1.2.3", "fabric": "1.2.3", "lightning": None}


def test_the_text_names_every_cell_and_what_is_wrong_with_it(load: Load, document: dict[str, Any]) -> None:
    lines = load("rows").as_text(document["rows"]).splitlines()
    assert len(lines) == 1 + len(document["rows"])
    assert lines[1].split() == ["ignite", "Engine", "tiny", "off", "200.0", "52.0", "52.0", "26.00"]
    assert lines[2].split()[-3:] == ["352.0", "272.0", "176.00"]
    assert lines[3].endswith("failed: exit code 1: it broke")
    assert lines[5].endswith("missing: no module")


def test_the_table_is_fine_only_where_all_is_measured_and_the_weights_are_the_bare_loops(load: Load) -> None:
    cell, rows = load("cells").Cell("ignite", "tiny", "off"), load("rows")
    for outcomes, is_fine in [
        ([measured(50.0)], True),
        ([measured(50.0), measured(50.0, weights_equal=False)], False),
        ([measured(50.0), {"failed": "killed"}], False),
        ([{"missing": "no module"}], False),
    ]:
        assert rows.all_fine(rows.rows({cell: outcomes})) is is_fine
    assert "weights differ" in rows.as_text(rows.rows({cell: [measured(50.0, weights_equal=False)]}))


def test_the_report_reads_the_file_that_is_written(load: Load, document: dict[str, Any], tmp_path: Path) -> None:
    around = {"format": 1, "date": "2026-01-31", "git": {"commit": None, "dirty": True}, "machine": {}, "versions": {}}
    path = tmp_path / "new" / "peers.json"
    load("run").write({**around, **document}, path)
    assert [each.name for each in path.parent.iterdir()] == ["peers.json"]
    assert json.loads(path.read_text(encoding="utf-8")) == {**around, **document}
    read = read_peers(path)
    assert (read.cases, read.workloads, len(read.rows)) == (["off", "tensorboard"], ["tiny"], 6)
    assert document["block_steps"] == {"tiny": load("cells").WORKLOADS["tiny"].block_steps}


def test_an_interrupted_measurement_leaves_the_rounds_that_were_completed(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    numbers = iter([50.0, 52.0, 54.0])

    def measure_one(*_: Any, **__: Any) -> dict[str, Any]:
        try:
            return measured(next(numbers))
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(load("run"), "measure_one", measure_one)
    output = tmp_path / "peers.json"
    options = ["--python", sys.executable, "--framework", "bare", "--workload", "tiny", "--output", str(output)]
    with pytest.raises(KeyboardInterrupt):
        load("run").main([*options, "--case", "off", "--case", "tensorboard"])
    read = read_peers(output)
    assert (read.processes, [each.num_processes for each in read.rows]) == (1, [1, 1])


def test_a_message_names_files_but_not_where_they_lie(load: Load) -> None:
    told = load("run").without_folders("cannot open '/a/b-c/d.so' (~/x/y)\n  see https://site/x/y and a/b/c")
    assert told == "cannot open 'd.so' (y) see https://site/x/y and a/b/c"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--framework", "keras"], "argument --framework: invalid choice: 'keras'"),
        (["--case", "on"], "argument --case: invalid choice: 'on'"),
        (["--steps", "nonsense"], "argument --steps: 'nonsense', expected tiny=N or charlm=N"),
        (["--steps", "digits=100"], "'digits=100', expected tiny=N or charlm=N"),
        (["--steps", "tiny=9"], "'9', expected a whole number of at least 10"),
        (["--steps", "tiny=many"], "'many', expected a whole number of at least 10"),
        (["--workload", "tiny", "--steps", "charlm=60"], "--steps for charlm, which --workload leaves out"),
        (["--processes", "0"], "'0', expected a whole number of at least 1"),
        (["--python", "no-such-program"], "'no-such-program' is no program; expected a Python interpreter"),
        (["--output", "."], "'.' is a folder; expected a file"),
        (["--output", "file/peers.json"], "the folder of 'file/peers.json' cannot be made: "),
    ],
)
def test_a_wrong_option_ends_with_two_before_anything_is_made(
    load: Load,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setattr(load("run"), "make", lambda: pytest.fail("it makes the environment"))
    with pytest.raises(SystemExit) as ended:
        load("run").main(options)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("#!/bin/sh\n", "program does not do what a Python interpreter does"),
        ('#!/bin/sh\necho \'{"python": 3, "versions": 11}\'\n', "program does not do what a Python interpreter does"),
        ("#!/bin/sh\necho oh >&2\nexit 3\n", "ended with exit code 3\nhint: it said:\noh"),
        ("neither text nor code", "program cannot be started: "),
    ],
)
def test_a_program_that_is_no_interpreter_ends_with_two(
    load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str, message: str
) -> None:
    program, output = tmp_path / "program", tmp_path / "peers.json"
    program.write_text(script, encoding="utf-8")
    program.chmod(0o755)
    assert load("run").main(["--python", str(program), "--output", str(output)]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert message in told.err
    assert (told.out, output.exists()) == ("", False)


def test_the_contents_of_an_environment_are_its_python_and_its_packages(load: Load) -> None:
    python, versions = load("environment").contents(Path(sys.executable))
    assert python == ".".join(map(str, sys.version_info[:3]))
    assert versions["pytest"] == pytest.__version__


def _step(parts: Any, batch: Any) -> None:
    parts.loss(parts.model(batch[0]), batch).backward()
    parts.optimizer.step()
    parts.optimizer.zero_grad()


@pytest.fixture
def blocks(load: Load) -> Callable[..., tuple[Any, Any]]:
    """Makes the twins and the loader, with a warm-up of two blocks."""

    def make(num_steps: int = 60) -> tuple[Any, Any]:
        twins = load("workloads").build("tiny")
        return twins, load("blocks").BlockLoader(twins, num_steps, warmup_steps=20, block_steps=10)

    return make


def test_loops_that_take_turns_end_with_equal_weights_however_far_one_fetches_ahead(
    blocks: Callable[..., tuple[Any, Any]],
) -> None:
    for ahead in (0, 1, 3):
        twins, loader = blocks(65)
        fetched = []
        for batch in loader:
            fetched.append(batch)
            if len(fetched) > ahead:
                _step(twins.subject, fetched.pop(0))
        for batch in fetched:
            _step(twins.subject, batch)
        assert loader.batches_ahead() == ahead
        assert twins.subject.same_weights_as(twins.bare)
        assert loader.result().num_steps == 65


def test_a_loop_that_does_not_step_once_for_each_batch_cannot_be_compared(
    blocks: Callable[..., tuple[Any, Any]],
) -> None:
    def every_other(twins: Any, loader: Any) -> None:
        for number, batch in enumerate(loader):
            if number % 2:
                _step(twins.subject, batch)

    def twice(twins: Any, loader: Any) -> None:
        for batch in loader:
            _step(twins.subject, batch)
            _step(twins.subject, batch)

    def stops_early(twins: Any, loader: Any) -> None:
        for number, batch in enumerate(loader):
            if number == 50:
                break
            _step(twins.subject, batch)

    for train in (every_other, twice, stops_early):
        twins, loader = blocks()
        train(twins, loader)
        with pytest.raises(RuntimeError, match="of 80 batches and trained between them with"):
            loader.batches_ahead()


def _burn(cpu_us: float) -> None:
    end_ns = time.thread_time_ns() + cpu_us * 1000
    while time.thread_time_ns() < end_ns:
        pass


def test_work_on_the_training_thread_is_found_there(blocks: Callable[..., tuple[Any, Any]]) -> None:
    twins, loader = blocks(200)
    for batch in loader:
        _step(twins.subject, batch)
        _burn(500)
    measured = loader.result()
    assert 400 < measured.thread_us < 900
    assert measured.background_us < 50
    assert measured.wall_us > 400


def test_a_thread_that_works_after_each_step_slows_its_own_loop_and_not_the_bare_one(
    blocks: Callable[..., tuple[Any, Any]],
) -> None:
    twins, loader = blocks(200)
    work: SimpleQueue[bool] = SimpleQueue()

    def write() -> None:
        while work.get():
            _burn(300)

    writer = Thread(target=write)
    writer.start()
    for batch in loader:
        _step(twins.subject, batch)
        work.put(True)
    work.put(False)
    writer.join()
    measured = loader.result()
    assert 250 < measured.background_us < 600
    assert measured.thread_us > 0  # where the loops alternate after each step, it is less than nothing


@pytest.mark.skipif(importlib.util.find_spec("ignite") is not None, reason="ignite is installed here")
def test_a_framework_that_cannot_be_imported_is_missing_rather_than_failed(load: Load) -> None:
    cell = load("cells").Cell("ignite", "tiny", "off")
    outcome = load("run").measure_one(cell, python=Path(sys.executable), num_steps=10)
    assert outcome == {"missing": "ModuleNotFoundError: No module named 'ignite'"}


def test_a_process_that_somebody_ended_says_so(load: Load, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nkill -TERM $$\n", encoding="utf-8")
    program.chmod(0o755)
    outcome = load("run").measure_one(load("cells").Cell("bare", "tiny", "off"), python=program, num_steps=10)
    assert outcome == {"failed": "signal SIGTERM: it said nothing"}


@pytest.fixture
def measure(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Peers]:
    """Measures the bare loop and the harness for real, with the interpreter of the tests, and reads the file."""

    def run(*options: str) -> Peers:
        output = tmp_path / "peers.json"
        both = ["--framework", "harness", "--framework", "bare", "--processes", "1", "--output", str(output)]
        code = load("run").main(["--python", sys.executable, *both, *options])
        told = capsys.readouterr()
        assert code == 0, told.out + told.err
        read = read_peers(output)
        assert [framework.name for framework in read.frameworks] == ["bare", "harness"]
        assert all(each.status == "measured" and each.weights_equal for each in read.rows)
        return read

    return run


@pytest.mark.slow
def test_bare_loop_and_harness_are_measured_and_end_with_the_same_weights(measure: Callable[..., Peers]) -> None:
    read = measure("--workload", "tiny", "--steps", "tiny=400")
    assert len(read.rows) == 2 * 3
    total_us = {(each.framework, each.case): each.figures["total_us"].mid for each in read.rows}
    assert abs(total_us["bare", "off"]) < 40
    assert total_us["bare", "tensorboard"] > total_us["bare", "off"] + 40
    assert total_us["harness", "off"] < 200


@pytest.mark.slow
def test_the_language_model_is_measured_too(measure: Callable[..., Peers]) -> None:
    read = measure("--workload", "charlm", "--case", "off", "--steps", "charlm=12")
    assert [(each.framework, each.num_processes) for each in read.rows] == [("bare", 1), ("harness", 1)]
    assert all(each.figures["bare_us"].mid > 5_000 for each in read.rows)


@pytest.mark.slow
def test_a_measurement_that_ends_with_an_error_has_its_last_line(load: Load) -> None:
    cell = load("cells").Cell("bare", "tiny", "off")
    outcome = load("run").measure_one(cell, python=Path(sys.executable), num_steps=0)
    assert outcome == {"failed": "exit code 1: AssertionError: too few steps to compare"}
