"""One measurement in a process of its own: the unit of the statistics, and what keeps cases from warming each other.

python -m harness.bench.process ROOT < SPEC.json > RESULT.json
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from harness.bench.spec import CaseResult, CaseSpec
from harness.errors import BenchError

_LAST_LINES = 12
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def run_in_process(spec: CaseSpec, *, root: Path, python: str = sys.executable) -> CaseResult:
    """Measure one case in a fresh process.

    Args:
        spec: What to measure.
        root: An empty folder for the measured run's files; they stay there.
        python: The interpreter; it must find the same `harness`.

    Raises:
        BenchError: The process failed; the message has the last lines it wrote.
    """
    ended = subprocess.run(
        [python, "-m", "harness.bench.process", str(root)],
        input=msgspec.json.encode(spec),
        capture_output=True,
        check=False,
        env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
    )
    if ended.returncode != 0:
        lines = ended.stderr.decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        raise BenchError(
            f"measuring {spec.loop!r} on {spec.workload!r} ended with exit code {ended.returncode}",
            hint="it said:\n" + "\n".join(lines),
        )
    return msgspec.json.decode(ended.stdout, type=CaseResult)


def main(arguments: list[str]) -> int:
    """Measure the case that standard input describes; the result goes to standard output as JSON."""
    from harness.bench.cases import run_case  # loads torch, which who only starts the process need not

    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # whatever the workload prints is talk
        spec = msgspec.json.decode(sys.stdin.buffer.read(), type=CaseSpec)
        out.write(msgspec.json.encode(run_case(spec, Path(arguments[0]))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
