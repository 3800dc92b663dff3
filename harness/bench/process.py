"""One measurement in a process of its own: the unit of the statistics, and what keeps cases from warming each other.

python -m harness.bench.process case|probe ROOT < SPEC.json > RESULT.json
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from harness.bench.spec import CaseResult, CaseSpec
from harness.errors import BenchError

Work = Literal["case", "probe"]
_LAST_LINES = 12
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # glibc hands memory back and asks for it again as its thresholds happen to move: page faults that fall on either
    # loop by chance, up to 5 % of a step of charlm.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
"""Of a process that measures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a measuring process ended."""

    returncode: int
    """Of the process; below zero it was ended by a signal."""
    out: bytes
    """The result as JSON, where the process ended with 0."""
    lines: tuple[str, ...]
    """What it said."""


def run_in_process(spec: CaseSpec, *, root: Path, python: str = sys.executable) -> CaseResult:
    """Measure one case in a fresh process.

    Args:
        spec: What to measure.
        root: An empty folder for the measured run's files; they stay there.
        python: The interpreter; it must find the same `harness`.

    Raises:
        BenchError: The process failed; the message has the last lines it wrote.
    """
    ended = run_child("case", spec, root=root, python=python)
    if ended.returncode != 0:
        raise BenchError(
            f"measuring {spec.loop!r} on {spec.workload!r} ended with exit code {ended.returncode}",
            hint="it said:\n" + "\n".join(ended.lines[-_LAST_LINES:]),
        )
    return msgspec.json.decode(ended.out, type=CaseResult)


def run_child(work: Work, spec: CaseSpec, *, root: Path, module: str = __name__, python: str = sys.executable) -> Ended:
    """Run a measuring process to its end. An exception here (Ctrl-C) ends it, and those it started.

    Args:
        work: `case` measures, `probe` trains for a moment to see whether it can be measured.
        spec: The case.
        root: An empty folder for the run's files.
        module: What runs there; takes the arguments of `main`.
        python: The interpreter.
    """
    process = subprocess.Popen(
        [python, "-m", module, work, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT},
    )
    with process:
        try:
            out, err = process.communicate(msgspec.json.encode(spec))
        except BaseException:
            _end_with_children(process)
            raise
    return Ended(returncode=process.returncode, out=out, lines=tuple(err.decode(errors="replace").strip().splitlines()))


def _end_with_children(process: subprocess.Popen[bytes]) -> None:
    """End the process and those that finish its traces, which are in sessions of their own."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for one in family:
        with contextlib.suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(family, timeout=5)


def main(arguments: list[str]) -> int:
    """Do the work that the first argument names with the case that standard input describes.

    The result goes to standard output as JSON.
    """
    # These load torch, which the process that starts this one need not.
    from harness.bench.cases import run_case
    from harness.bench.probe import run_probe

    work: Mapping[str, Callable[[CaseSpec, Path], Any]] = {"case": run_case, "probe": run_probe}
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # whatever the workload prints is talk
        spec = msgspec.json.decode(sys.stdin.buffer.read(), type=CaseSpec)
        out.write(msgspec.json.encode(work[arguments[0]](spec, Path(arguments[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
