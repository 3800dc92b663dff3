from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.run_files import last_evaluation, read_run
from harness.errors import RunDirError, RunNameError
from harness.run.directory import RunDirectory
from harness.run.manifest import RunFacts
from harness.run.manifest_file import ManifestFile

TRAINING = b'{"step":%d,"time":1.0,"loss/train/total":0.5}\n'
EVALUATION = b'{"step":%d,"time":1.0,"loss/eval/total":0.25,"metrics/eval/accuracy":0.5,"loss/train/total":1.0}\n'


def begin(root: Path, name: str = "foo") -> tuple[RunDirectory, ManifestFile]:
    claimed = RunDirectory.claim(root, name)
    facts = RunFacts(run_name=name, name_source="run_name", argv=["train"], pid=1, host="h")
    return claimed, ManifestFile.start(claimed.manifest_path, facts)


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(lines))
    return path


def test_the_last_evaluation_is_found_whatever_was_logged_after_it(tmp_path: Path) -> None:
    lines = [EVALUATION % 1, EVALUATION % 2, *(TRAINING % step for step in range(3, 2000))]
    found = last_evaluation(write(tmp_path / "metrics.jsonl", *lines))
    assert found is not None
    assert (found.step, found.metrics) == (2, {"loss": 0.25, "accuracy": 0.5})


def test_a_torn_evaluation_is_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", EVALUATION % 1, (EVALUATION % 2)[:60])
    found = last_evaluation(path)
    assert found is not None
    assert found.step == 1


def test_a_metric_of_a_similar_name_is_no_evaluation(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", EVALUATION % 1, b'{"step":2,"time":1.0,"mine/eval/x":1.0}\n')
    found = last_evaluation(path)
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize("content", [b"", b"\n", b"/eval/", b'["/eval/"]\n', b'{"step":"/eval/"}', b"\xff/eval/\n"])
def test_a_file_without_evaluations_has_none(tmp_path: Path, content: bytes) -> None:
    assert last_evaluation(write(tmp_path / "metrics.jsonl", content)) is None


def test_a_missing_metrics_file_has_no_evaluation(tmp_path: Path) -> None:
    assert last_evaluation(tmp_path / "metrics.jsonl") is None


def test_a_run_that_runs_is_running_and_a_killed_one_crashed(tmp_path: Path) -> None:
    claimed, _ = begin(tmp_path)
    assert read_run(tmp_path, "foo").manifest.status == "running"
    claimed.release()
    killed = read_run(tmp_path, "foo").manifest
    assert (killed.status, killed.attempts[-1].status) == ("crashed", "crashed")


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    claimed, manifest = begin(tmp_path)
    manifest.end_attempt("finished")
    claimed.release()
    assert read_run(tmp_path, "foo").manifest.status == "finished"


def test_a_step_file_that_cannot_be_read_is_told_and_hides_nothing_else(tmp_path: Path) -> None:
    claimed, manifest = begin(tmp_path)
    manifest.end_attempt("finished")
    claimed.release()
    write(claimed.steps_path(0), b'{"step":1}\n{"step":2}\n')
    run = read_run(tmp_path, "foo")
    assert run.steps is None
    assert run.steps_error is not None
    assert "line 1" in run.steps_error


def test_a_name_that_breaks_the_rules_is_not_looked_for(tmp_path: Path) -> None:
    with pytest.raises(RunNameError):
        read_run(tmp_path, "../foo")


def test_a_run_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunDirError):
        read_run(tmp_path, "foo")
