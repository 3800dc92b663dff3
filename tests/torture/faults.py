"""Lets one call that a process makes to the disk go wrong: the Nth of a save, or of a run. The shim is `faults.c`."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
CHANGES = ("open", "write", "sync", "rename", "unlink", "symlink", "mkdir", "truncate")
"""Kinds of calls after which the disk is another one: a kill before each of them is a kill at every instant."""
ALL = (*CHANGES, "read", "close")
"""Kinds of calls that can fail."""
KILL, TORN, SHORT = "kill", "torn", "short"


class NoCompilerError(Exception):
    """The shim cannot be compiled here."""


def compile_shim(folder: Path) -> Path:
    """Compile the shim into a folder.

    Raises:
        NoCompilerError: There is no C compiler, or it failed; says which and why.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompilerError("there is no C compiler (cc or gcc) for tests/torture/faults.c")
    shim = folder / "faults.so"
    command = [compiler, "-Wall", "-Wextra", "-O1", "-fPIC", "-shared", "-o", str(shim), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoCompilerError(f"{compiler} cannot compile {SOURCE.name}: {done.stderr}")
    return shim


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong, and where. See faults.c for the meaning of each."""

    root: Path
    do: str | int = KILL
    at: int = 0
    times: int = 1
    ops: tuple[str, ...] = CHANGES
    begin: str = ""
    """Counting begins with the first call whose path contains this."""
    match: str = ""
    log: Path | None = None
    program: str = ""

    def variables(self) -> dict[str, str]:
        """The variables of the environment that tell the shim."""
        told = {
            "FAULTS_ROOT": str(self.root.resolve()),
            "FAULTS_DO": str(self.do),
            "FAULTS_AT": str(self.at),
            "FAULTS_TIMES": str(self.times),
            "FAULTS_OPS": ",".join(self.ops),
            "FAULTS_FROM": self.begin,
            "FAULTS_MATCH": self.match,
            "FAULTS_PROGRAM": self.program,
            "FAULTS_LOG": "" if self.log is None else str(self.log),
        }
        return {name: value for name, value in told.items() if value}


def arm(variables: dict[str, str]) -> None:
    """In a process with the shim: begin to count now. Its own environment is left as it was."""
    shim = ctypes.CDLL(None)
    os.environ.update(variables)
    try:
        shim.faults_arm()
    finally:
        for name in variables:
            del os.environ[name]


def disarm() -> None:
    """Count no more."""
    arm({})


def num_counted() -> int:
    """How many calls this process has made since it was armed."""
    return int(ctypes.CDLL(None).faults_count())


def counted(log: Path) -> list[tuple[str, str]]:
    """Kind and path of each call that a shim's log has."""
    if not log.exists():
        return []
    calls = (line.split(" ", 2)[1:] for line in log.read_text().splitlines())
    return [(kind, path) for kind, path in calls]
