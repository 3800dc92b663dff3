"""Hands a raw trace to a child process that makes the finished file of it.

Verifying, repairing and compressing 100 MB of JSON takes seconds of CPU and would hold the GIL if it ran in a
thread of the training process. So the training side writes one small job file and starts a child at low
priority (`harness.capture.finish`); the child writes the trace and one small result file. The child is in a
session of its own: Ctrl-C in the terminal and the end of the training process do not stop it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from harness.errors import CaptureError
from harness.run.durable import write_atomically
from harness.units import NS_PER_S

JOB_NAME = "job.json"
LOG_NAME = "finish.log"
_LOG_TAIL_BYTES = 2000


class SystemPoint(msgspec.Struct, frozen=True, kw_only=True):
    """System metrics at one moment, to be shown as counters on the trace."""

    time_ns: int
    """Unix time in ns."""
    values: dict[str, float]
    """Metric name (with its unit in the name) to value."""


class FinishJob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the child needs to know to finish one window's trace."""

    raw_path: str
    """The JSON that torch exported, alone in a folder of its own under the run's private folder."""
    final_path: str
    """Where the finished trace goes; its folder is there already. Ends in `.pt.trace.json.gz`."""
    result_path: str
    """Where the child writes its FinishResult. The job and log file are put beside it."""
    run_name: str
    rank: int
    world_size: int
    first_step: int
    """First recorded step (global, from 1)."""
    last_step: int
    """Last recorded step, inclusive."""
    attempt: int = 1
    recipe: str = ""
    """Name of the capture recipe."""
    cut: str | None = None
    """Why the window ended early; None for a whole window."""
    system: list[SystemPoint] = []


class FinishResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the child did."""

    ok: bool
    """Whether a verified trace lies at the final path."""
    error: str | None = None
    """What went wrong; None if ok."""
    events: int = 0
    """Events in the finished file, counters and track names of ours included."""
    repaired_overlaps: int = 0
    """Events shortened so that all slices of a thread nest."""
    repaired_names: int = 0
    """Events whose text was not valid JSON and was escaped."""
    dropped_events: int = 0
    """Events that could not be recovered from invalid JSON."""
    size_bytes: int = 0
    """Size of the finished file."""
    profiler_steps: list[int] = []
    """The N of every `ProfilerStep#N` in the trace, sorted."""
    phase_annotations: int = 0
    """Number of `phase/…` spans."""
    cpu_ns: int = 0
    """CPU time of the child, start of the interpreter included."""
    kept_raw_path: str | None = None
    """Where the raw trace still lies when no finished one could be made; None if there is nothing to keep."""


class FinishingChild:
    """A running child; ask it with `poll` or `wait`.

    Args:
        job: What it was told to do.
        process: The child.
    """

    def __init__(self, job: FinishJob, process: subprocess.Popen[bytes]) -> None:
        self.job = job
        self._process = process
        self._cpu_ns = 0
        self._result: FinishResult | None = None

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def poll(self) -> FinishResult | None:
        """The result once the child has ended, else None. Never blocks; removes the child's small files."""
        if self._result is None:
            returncode = self._reap()
            if returncode is not None:
                self._result = self._collect(returncode)
        return self._result

    def wait(self, timeout_s: float | None = None) -> FinishResult | None:
        """Wait for the child; None if `timeout_s` passes first. The child then goes on by itself."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self.poll()

    def _reap(self) -> int | None:
        """The exit status once the child has ended, with its CPU time from beginning to end.

        The child's own figure lacks what the interpreter needs to end, a sixth of the whole for a small trace.
        """
        if self._process.returncode is None:
            try:
                pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else collected it
                return self._process.poll()
            if pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                self._cpu_ns = round((usage.ru_utime + usage.ru_stime) * NS_PER_S)
        return self._process.returncode

    def _collect(self, returncode: int) -> FinishResult:
        result_path = Path(self.job.result_path)
        try:
            result = msgspec.json.decode(result_path.read_bytes(), type=FinishResult)
        except (OSError, msgspec.MsgspecError):
            result = FinishResult(ok=False, error=self._death(returncode), kept_raw_path=self._kept_raw())
        if result.ok:
            _remove_small_files(self.job)
        return msgspec.structs.replace(result, cpu_ns=max(result.cpu_ns, self._cpu_ns))

    def _kept_raw(self) -> str | None:
        return self.job.raw_path if Path(self.job.raw_path).exists() else None

    def _death(self, returncode: int) -> str:
        with suppress(OSError):
            log = Path(self.job.result_path).with_name(LOG_NAME).read_bytes()[-_LOG_TAIL_BYTES:]
            lines = log.decode("utf-8", "replace").strip().splitlines()
            if lines:
                return f"the process that finishes {self.job.final_path} ended with {returncode}: {lines[-1]}"
        return f"the process that finishes {self.job.final_path} ended with {returncode} and left no result"


def write_job(job: FinishJob) -> None:
    """Write `job.json` beside `job.result_path`, for the child, and for the next attempt if this one is killed.

    Raises:
        RunDirError: It cannot be written.
    """
    write_atomically(Path(job.result_path).with_name(JOB_NAME), msgspec.json.encode(job), durable=False)


def start_finishing(job: FinishJob) -> FinishingChild:
    """Start the child; takes a few milliseconds.

    Writes `finish.log` beside `job.result_path`, and the job file if it is not there.

    Raises:
        CaptureError: The job file cannot be written or the child not started. The raw trace stays.
    """
    folder = Path(job.result_path).parent
    job_path = folder / JOB_NAME
    try:
        if not job_path.exists():
            write_job(job)
        with (folder / LOG_NAME).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "harness.capture.finish", str(job_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_child_environment(),
                start_new_session=True,
            )
    except OSError as error:
        raise CaptureError(
            f"cannot start the process that finishes {job.final_path}: {error}",
            hint=f"the raw trace is kept at {job.raw_path}",
        ) from error
    return FinishingChild(job, process)


def unfinished_jobs(private_dir: Path) -> list[FinishJob]:
    """Jobs that a killed process left behind: their raw trace is there and perhaps nobody finishes it.

    Removes the small files of those that a child finished by itself after the process was gone.

    Args:
        private_dir: The run's private folder; jobs are looked for one folder deep. Hold the run's lock.
    """
    jobs = []
    for path in sorted(private_dir.glob(f"*/{JOB_NAME}")):
        with suppress(OSError, msgspec.MsgspecError):
            job = msgspec.json.decode(path.read_bytes(), type=FinishJob)
            if Path(job.raw_path).exists():
                jobs.append(job)
            elif Path(job.result_path).exists():
                _remove_small_files(job)
    return jobs


def _child_environment() -> dict[str, str]:
    """The parent's environment and import path: the package may be importable only because of sys.path."""
    paths = [str(Path(entry).resolve()) if entry == "" else entry for entry in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def _remove_small_files(job: FinishJob) -> None:
    """The child removed the raw trace; the rest goes once its result is read."""
    result_path = Path(job.result_path)
    for path in (result_path, result_path.with_name(JOB_NAME), result_path.with_name(LOG_NAME)):
        with suppress(OSError):
            path.unlink()
    for folder in {result_path.parent, Path(job.raw_path).parent}:
        with suppress(OSError):  # not empty: somebody else's files, leave them
            folder.rmdir()
