"""A process that has torch loaded and forks a child for each trial: a quarter of a second instead of three.

It forks before there is any session and before any thread was started, so a child is what a new process would be.
Started as a program it reads requests from stdin, a line of JSON each, and answers each with one:

    {"task": "train", "arguments": {…}, "output": "…", "kill_after_s": 0.1, "signal_first": 15}
    {"code": 0, "signal": null, "stdout": "", "stderr": "", "took_s": 0.8}
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Two threads are not bit-equal to themselves in one of twenty processes (pytorch#188792)."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child ended."""

    code: int | None
    """Its exit code; None if a signal ended it."""
    signal: int | None
    """The signal that ended it."""
    stdout: str
    """What it said."""
    stderr: str
    """What it complained of."""
    took_s: float
    """Wall time."""

    @classmethod
    def of(cls, returncode: int, stdout: str, stderr: str, took_s: float) -> Ended:
        """From a return code as `subprocess` has it: negative for a signal."""
        return cls(
            code=returncode if returncode >= 0 else None,
            signal=-returncode if returncode < 0 else None,
            stdout=stdout,
            stderr=stderr,
            took_s=took_s,
        )

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.signal == signal.SIGKILL


def environment(shim: Path | None = None, **more: str) -> dict[str, str]:
    """The environment of a process that trains on one thread and finds the modules beside this one."""
    path = os.pathsep.join((str(PROJECT), str(HERE)))
    env = {**os.environ, **ONE_THREAD, "PYTHONPATH": path, "KINETO_LOG_LEVEL": "6", **more}
    if shim is not None:
        env["LD_PRELOAD"] = str(shim)
    return env


class Nursery:
    """The parent of trials, used as a context manager.

    Args:
        folder: For what the children say.
        shim: The shim to preload, from `compile_shim`.
        within: A command that the process is started by, such as `unshare`.
        **more: More variables of its environment.
    """

    def __init__(self, folder: Path, shim: Path | None = None, within: Sequence[str] = (), **more: str) -> None:
        self._output = folder / "output"
        self._process = subprocess.Popen(
            [*within, sys.executable, str(HERE / "nursery.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(shim, **more),
            cwd=PROJECT,
        )

    def run(
        self,
        task: str,
        *arguments: Any,
        kill_after_s: float | None = None,
        signal_first: tuple[int, float] | None = None,
        **keywords: Any,
    ) -> Ended:
        """Fork a child that does a task of `victim.py`, and wait for its end.

        Args:
            task: The function's name.
            *arguments: Its arguments, of the kinds that JSON has; paths become texts.
            kill_after_s: SIGKILL it then, if it still runs.
            signal_first: Another signal, and how long before the kill.
            **keywords: Its keyword arguments.
        """
        request = {
            "task": task,
            "arguments": arguments,
            "keywords": keywords,
            "output": str(self._output),
            "kill_after_s": kill_after_s,
            "signal_first": signal_first,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request, default=str), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the nursery died ({self._process.wait()})")
        found = json.loads(answer)
        return Ended(**found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)


def _serve() -> None:
    import torch
    import torch._dynamo  # the first optimizer of a process loads it, in half a second
    import victim

    torch.set_num_threads(1)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "threads do not survive a fork"
    for line in sys.stdin:
        request = json.loads(line)
        output = Path(request["output"])
        begin = time.monotonic()
        child = os.fork()
        if child == 0:
            _be_born(output)
            os._exit(_do(victim, request))
        status = _wait(child, request["kill_after_s"], request["signal_first"])
        said = (output.with_suffix(suffix).read_text(errors="replace") for suffix in (".out", ".err"))
        ended = Ended.of(os.waitstatus_to_exitcode(status), *said, time.monotonic() - begin)
        print(json.dumps(asdict(ended)), flush=True)


def _be_born(output: Path) -> None:
    """Let go of the parent's pipes: the child has files of its own to write to."""
    for fd, path in ((0, Path(os.devnull)), (1, output.with_suffix(".out")), (2, output.with_suffix(".err"))):
        new = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(new, fd)
        os.close(new)


def _do(victim: Any, request: dict[str, Any]) -> int:
    from harness.cli.terminal import set_up_logging

    try:
        set_up_logging()
        code = getattr(victim, request["task"])(*request["arguments"], **request["keywords"])
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code)


def _wait(child: int, kill_after_s: float | None, signal_first: Sequence[float] | None) -> int:
    if kill_after_s is not None:
        number, before_s = signal_first or (0, 0.0)
        if signal_first is not None and _ends_within(child, max(0.0, kill_after_s - before_s)):
            return os.waitpid(child, 0)[1]
        if signal_first is not None:
            os.kill(child, int(number))
        if not _ends_within(child, before_s if signal_first is not None else kill_after_s):
            os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _ends_within(child: int, seconds: float) -> bool:
    """Whether the child ends by itself; it is not collected, so that its number stays its own."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(min(left, 0.002))
    return False


if __name__ == "__main__":
    _serve()
