"""From a raw trace to the finished file: repairs, additions, and what stays when something goes wrong."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.capture.finish import EXIT_BUSY, finish
from harness.capture.trace_file import (
    FinishingChild,
    FinishJob,
    FinishResult,
    SystemPoint,
    start_finishing,
    unfinished_jobs,
)
from harness.errors import CaptureError
from harness.trace.reader import load
from harness.trace.spans import phase_spans, profiler_steps

BASE_NS = 1_790_857_026_000_000_000
PID = 4711


def event(ph: str, name: str, ts: str, dur: str | None = None, *, cat: str = "user_annotation", args: str = "") -> str:
    """An event in the layout of torch's exporter, which writes texts unescaped."""
    length = "" if dur is None else f',\n    "dur": {dur}'
    return (
        f'  {{\n    "ph": "{ph}",\n    "cat": "{cat}",\n    "name": "{name}",\n    "pid": {PID},\n'
        f'    "tid": {PID},\n    "ts": {ts}{length}\n    ,\n    "args": {{\n      {args}\n    }}\n  }}'
    )


STEP_12 = event("X", "ProfilerStep#12", "1000.000", "500.000")
FORWARD = event("X", "phase/forward", "1010.000", "100.000")
BACKWARD = event("X", "phase/backward", "1110.000", "100.000")
ADD = event("X", "aten::add", "1020.000", "10.000", cat="cpu_op", args='"External id": 5')
ENTER = event("X", "<built-in method _record_function_enter_new>", "1005.000", "8.000", cat="python_function")


def raw_trace(*events: str) -> bytes:
    head = (
        ' {\n    "schemaVersion": 1,\n    "deviceProperties": [],\n    \n      "trace_id": "ABC",\n'
        f'      "host_name": "vm",\n    "displayTimeUnit": "ms",\n    "baseTimeNanoseconds": {BASE_NS},\n'
        '    "traceEvents": [\n    \n'
    )
    return (head + ",\n".join(events) + '\n  ],"traceName": "/private/trace.json" }').encode()


def job_for(tmp_path: Path, raw: bytes | None, **more: object) -> FinishJob:
    window = tmp_path / ".capture" / "window-000012"
    window.mkdir(parents=True)
    (tmp_path / "traces").mkdir()
    if raw is not None:
        (window / "trace.json").write_bytes(raw)
    fields: dict[str, object] = {
        "raw_path": str(window / "trace.json"),
        "final_path": str(tmp_path / "traces" / "rank0.000012.pt.trace.json.gz"),
        "result_path": str(window / "result.json"),
        "run_name": "foo",
        "rank": 0,
        "world_size": 1,
        "first_step": 12,
        "last_step": 12,
        "attempt": 2,
        "recipe": "quick",
    }
    return FinishJob(**{**fields, **more})


def finish_now(job: FinishJob) -> FinishResult:
    with Path(job.raw_path).open("rb") as raw:
        return finish(job, raw)


def finished_json(job: FinishJob) -> dict[str, object]:
    document = json.loads(gzip.decompress(Path(job.final_path).read_bytes()))
    assert isinstance(document, dict)
    return document


def test_a_good_trace_gets_the_names_of_the_run_and_is_otherwise_unchanged(tmp_path: Path) -> None:
    raw = raw_trace(STEP_12, FORWARD, ADD, BACKWARD)
    job = job_for(tmp_path, raw, cut="SIGTERM")
    result = finish_now(job)
    assert (result.ok, result.error, result.kept_raw_path) == (True, None, None)
    assert (result.repaired_overlaps, result.repaired_names, result.dropped_events) == (0, 0, 0)
    assert (result.profiler_steps, result.phase_annotations) == ([12], 2)
    assert result.size_bytes == Path(job.final_path).stat().st_size
    text = gzip.decompress(Path(job.final_path).read_bytes()).decode()
    assert all(part.strip() in text for part in (STEP_12, FORWARD, ADD, BACKWARD)), "byte for byte"
    found = json.loads(text)
    expected = json.loads(raw) | {
        "run_name": "foo",
        "rank": 0,
        "world_size": 1,
        "attempt": 2,
        "recipe": "quick",
        "first_step": 12,
        "last_step": 12,
        "cut": "SIGTERM",
        "distributedInfo": {"rank": 0, "world_size": 1},
        "traceName": "rank0.000012.pt.trace.json.gz",
    }
    assert found["traceEvents"][:4] == expected.pop("traceEvents")
    added = found.pop("traceEvents")[4:]
    assert found == expected
    assert [(one["name"], one["pid"], one["args"]) for one in added] == [
        ("process_labels", PID, {"labels": "foo rank 0"})
    ]
    assert result.events == 5
    assert not Path(job.raw_path).parent.exists()


def test_a_step_that_torch_opened_and_nobody_began_is_left_out(tmp_path: Path) -> None:
    unbegun = STEP_12.replace("#12", "#13").replace("1000.000", "1500.000")
    job = job_for(tmp_path, raw_trace(STEP_12, FORWARD, unbegun), cut="end of training")
    result = finish_now(job)
    assert (result.ok, result.profiler_steps) == (True, [12])
    assert [step.step for step in profiler_steps(load(job.final_path))] == [12]
    assert result.events == 3, "step, phase and the label of ours"


def test_distributed_info_of_torch_stays(tmp_path: Path) -> None:
    raw = raw_trace(STEP_12).replace(b'"schemaVersion": 1', b'"distributedInfo": {"backend": "gloo", "rank": 3}')
    job = job_for(tmp_path, raw, rank=3, world_size=4)
    finish_now(job)
    found = finished_json(job)
    assert found["distributedInfo"] == {"backend": "gloo", "rank": 3}
    assert (found["rank"], found["world_size"]) == (3, 4)


def test_system_samples_become_counters_on_the_clock_of_the_trace(tmp_path: Path) -> None:
    system = [
        SystemPoint(time_ns=BASE_NS + 1_000_001, values={"system/cpu_pct": 12.5, "process/rss_bytes": 2.0e9}),
        SystemPoint(time_ns=BASE_NS + 1_400_000, values={"system/cpu_pct": float("nan"), "process/rss_bytes": 3}),
        SystemPoint(time_ns=BASE_NS - 5, values={'odd "name"': float("inf"), "x": -1.0}),
    ]
    job = job_for(tmp_path, raw_trace(STEP_12), system=system)
    assert finish_now(job).ok
    trace = load(job.final_path)
    rows = [row for row in range(len(trace)) if trace.phs[trace.ph[row]] == "C"]
    assert [(trace.names[trace.name[row]], trace.ts_ns[row], trace.args(row)) for row in rows] == [
        ("system/cpu_pct", 1_000_001, {"value": 12.5}),
        ("process/rss_bytes", 1_000_001, {"value": 2.0e9}),
        ("process/rss_bytes", 1_400_000, {"value": 3.0}),
        ("x", -5, {"value": -1.0}),
    ]
    (system_pid,) = {trace.pids[trace.pid[row]] for row in rows}
    assert system_pid != PID
    names = [one["args"] for one in finished_json(job)["traceEvents"] if one["name"] == "process_name"]  # type: ignore[union-attr,attr-defined,index]
    assert names == [{"name": "system"}]


def test_the_counters_find_a_process_number_that_is_free(tmp_path: Path) -> None:
    taken = STEP_12.replace(f'"pid": {PID}', '"pid": 10000000')
    job = job_for(tmp_path, raw_trace(taken), system=[SystemPoint(time_ns=BASE_NS, values={"x": 1.0})])
    finish_now(job)
    trace = load(job.final_path)
    assert set(trace.pids) == {10_000_000, 10_000_001}


def test_planted_overlaps_are_clipped_and_annotations_keep_their_times(tmp_path: Path) -> None:
    job = job_for(tmp_path, raw_trace(STEP_12, ENTER, FORWARD, ADD, BACKWARD))
    result = finish_now(job)
    assert result.repaired_overlaps == 1
    trace = load(job.final_path)
    times = {trace.names[trace.name[row]]: (trace.ts_ns[row], trace.dur_ns[row]) for row in range(5)}
    assert times["<built-in method _record_function_enter_new>"] == (1_005_000, 5_000)
    assert times["phase/forward"] == (1_010_000, 100_000)
    assert times["ProfilerStep#12"] == (1_000_000, 500_000)
    assert [phase.step for phase in phase_spans(trace)] == [12, 12]


def test_labels_that_break_the_json_keep_their_text(tmp_path: Path) -> None:
    labels = ['a"b', "c\\d", "tab\t", 'x"y\\"z']
    job = job_for(tmp_path, raw_trace(STEP_12, *(event("X", label, "1100.000", "1.000") for label in labels)))
    result = finish_now(job)
    assert (result.ok, result.repaired_names, result.dropped_events) == (True, len(labels), 0)
    trace = load(job.final_path)
    assert set(labels) <= set(trace.names)


def test_a_truncated_raw_trace_is_written_without_its_last_event(tmp_path: Path) -> None:
    whole = raw_trace(STEP_12, FORWARD, ADD, BACKWARD)
    job = job_for(tmp_path, whole[: whole.rindex(b'"dur": 100')])
    result = finish_now(job)
    assert (result.ok, result.dropped_events, result.phase_annotations) == (True, 1, 1)
    assert [step.step for step in profiler_steps(load(job.final_path))] == [12]


@pytest.mark.parametrize("raw", [b"", b"hello", b'{"schemaVersion": 1}', raw_trace()])
def test_what_is_no_trace_is_kept_and_reported(tmp_path: Path, raw: bytes) -> None:
    job = job_for(tmp_path, raw)
    result = finish_now(job)
    assert not result.ok
    assert job.raw_path in str(result.error)
    assert result.kept_raw_path == job.raw_path
    assert Path(job.raw_path).read_bytes() == raw
    assert list(Path(job.final_path).parent.iterdir()) == []


def test_a_link_planted_at_the_target_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    job = job_for(tmp_path, raw_trace(STEP_12))
    Path(job.final_path).symlink_to(victim)
    assert finish_now(job).ok
    assert victim.read_text() == "precious"
    assert not Path(job.final_path).is_symlink()
    assert profiler_steps(load(job.final_path))[0].step == 12


def test_a_link_planted_at_the_folder_of_the_target_is_refused(tmp_path: Path) -> None:
    job = job_for(tmp_path, raw_trace(STEP_12))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Path(job.final_path).parent.rmdir()
    Path(job.final_path).parent.symlink_to(elsewhere)
    result = finish_now(job)
    assert not result.ok
    assert list(elsewhere.iterdir()) == []
    assert Path(job.raw_path).exists()


def test_a_target_that_cannot_be_written_leaves_the_raw_trace(tmp_path: Path) -> None:
    job = job_for(tmp_path, raw_trace(STEP_12))
    Path(job.final_path).mkdir()
    result = finish_now(job)
    assert not result.ok
    assert job.final_path in str(result.error)
    assert Path(job.raw_path).exists()
    assert [path.name for path in Path(job.final_path).parent.iterdir()] == [Path(job.final_path).name]


def test_a_disk_that_takes_no_more_leaves_the_raw_trace_and_no_part_of_a_file(tmp_path: Path) -> None:
    events = [event("X", f"op{hash(i * 7919)}", f"{i * i}.{i % 1000:03d}", "0.500") for i in range(20_000)]
    job = job_for(tmp_path, raw_trace(*events))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # handed on to the child
    try:
        child = start_finishing(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    result = child.wait(60)
    assert result is not None
    assert not result.ok
    assert job.final_path in str(result.error)
    assert result.kept_raw_path == job.raw_path
    assert list(Path(job.final_path).parent.iterdir()) == []
    assert start_finishing(job).wait(60).ok  # type: ignore[union-attr]
    assert len(load(job.final_path)) == 20_001


def test_leftovers_of_a_killed_child_are_removed(tmp_path: Path) -> None:
    job = job_for(tmp_path, raw_trace(STEP_12))
    folder = Path(job.final_path).parent
    (folder / ".rank0.000012.pt.trace.json.gz.0123456789abcdef.tmp").write_bytes(b"half")
    (folder / ".rank0.000013.pt.trace.json.gz.0123456789abcdef.tmp").write_bytes(b"of another")
    assert finish_now(job).ok
    assert sorted(path.name for path in folder.iterdir()) == [
        ".rank0.000013.pt.trace.json.gz.0123456789abcdef.tmp",
        "rank0.000012.pt.trace.json.gz",
    ]


def test_the_child_finishes_and_its_small_files_go(tmp_path: Path) -> None:
    job = job_for(tmp_path, raw_trace(STEP_12, FORWARD))
    child = start_finishing(job)
    result = child.wait(60)
    assert result is not None
    assert (result.ok, result.error) == (True, None)
    assert result.cpu_ns > 10_000_000
    assert child.poll() is result
    assert load(job.final_path).metadata()["run_name"] == "foo"
    assert list((tmp_path / ".capture").iterdir()) == []
    assert unfinished_jobs(tmp_path / ".capture") == []


def test_the_child_is_polite_and_independent_of_the_terminal(tmp_path: Path) -> None:
    job = job_for(tmp_path, None)
    os.mkfifo(job.raw_path)  # the child waits at the open until somebody writes
    child = start_finishing(job)
    try:
        deadline = time.monotonic() + 30
        while os.getpriority(os.PRIO_PROCESS, child.pid) != 19 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == 19
        assert os.getsid(child.pid) == child.pid
        assert child.poll() is None
        assert child.wait(0.01) is None
    finally:
        Path(job.raw_path).write_bytes(raw_trace(STEP_12))
    result = child.wait(60)
    assert result is not None
    assert result.ok, result.error


def test_the_child_needs_no_torch_and_finds_the_package_through_sys_path(tmp_path: Path) -> None:
    job = job_for(tmp_path, raw_trace(STEP_12))
    root = Path(__file__).parents[3]
    blocked = tmp_path / "blocked" / "torch"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise SystemExit('torch was imported')")
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the working folder was imported')")
    program = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from harness.capture.trace_file import FinishJob, start_finishing; import msgspec\n"
        "job = msgspec.json.decode(sys.argv[3], type=FinishJob)\n"
        "result = start_finishing(job).wait(60); assert result.ok, result.error\n"
    )
    encoded = json.dumps({name: getattr(job, name) for name in job.__struct_fields__})
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    arguments = [sys.executable, "-P", "-c", program, str(blocked.parent), str(root), encoded]
    subprocess.run(arguments, cwd=tmp_path, env=environment, check=True, timeout=120)
    assert Path(job.final_path).exists()


def test_a_child_that_dies_loses_nothing_and_is_found_at_the_next_start(tmp_path: Path) -> None:
    job = job_for(tmp_path, None)
    os.mkfifo(job.raw_path)
    child = start_finishing(job)
    os.kill(child.pid, 9)
    result = child.wait(60)
    assert result is not None
    assert not result.ok
    assert "-9" in str(result.error)
    assert result.kept_raw_path == job.raw_path
    Path(job.raw_path).unlink()
    Path(job.raw_path).write_bytes(raw_trace(STEP_12))
    (found,) = unfinished_jobs(tmp_path / ".capture")
    assert found == job
    again = start_finishing(found).wait(60)
    assert again is not None
    assert again.ok
    assert list((tmp_path / ".capture").iterdir()) == []


def test_what_a_child_finished_after_its_parent_died_is_tidied(tmp_path: Path) -> None:
    job = job_for(tmp_path, raw_trace(STEP_12))
    child = start_finishing(job)
    while (Path(f"/proc/{child.pid}/stat")).read_text().split(") ")[1][0] != "Z":
        time.sleep(0.01)
    assert Path(job.result_path).exists()
    assert unfinished_jobs(tmp_path / ".capture") == []
    assert list((tmp_path / ".capture").iterdir()) == []
    child.wait(10)


def test_two_children_do_not_work_on_one_trace(tmp_path: Path) -> None:
    job = job_for(tmp_path, raw_trace(STEP_12))
    with Path(job.raw_path).open("rb") as raw:
        fcntl.flock(raw, fcntl.LOCK_EX)
        result = start_finishing(job).wait(60)
    assert result is not None
    assert not result.ok
    assert str(EXIT_BUSY) in str(result.error)
    assert "another process is finishing" in str(result.error)
    assert Path(job.raw_path).exists()
    assert not Path(job.final_path).exists()


def test_a_raw_trace_that_is_missing_is_reported(tmp_path: Path) -> None:
    job = job_for(tmp_path, None)
    result = start_finishing(job).wait(60)
    assert result is not None
    assert not result.ok
    assert job.raw_path in str(result.error)
    assert result.kept_raw_path is None


def test_a_child_that_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    job = job_for(tmp_path, raw_trace(STEP_12), result_path=str(tmp_path / "nowhere" / "result.json"))
    with pytest.raises(CaptureError, match="cannot start") as error:
        start_finishing(job)
    assert job.raw_path in str(error.value)
    assert Path(job.raw_path).exists()


def test_a_killed_child_leaves_no_invalid_file_at_the_final_name(tmp_path: Path) -> None:
    events = [event("X", f"op{i}", f"{i}.000", "0.500", cat="cpu_op") for i in range(20_000)]
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        job = job_for(folder, raw_trace(STEP_12, *events))
        child: FinishingChild = start_finishing(job)
        time.sleep(0.1 + 0.06 * number)
        os.kill(child.pid, 9)
        result = child.wait(60)
        assert result is not None
        final = Path(job.final_path)
        assert final.exists() or Path(job.raw_path).exists()
        if final.exists():
            assert len(load(final)) == 20_002
