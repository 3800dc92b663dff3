"""Where a run comes from: versions, git commit, machine. Asking must neither fail a run nor hold it up."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

GIT_TIMEOUT_S = 2.0
"""A checkout on a slow network disk is not waited for longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GitState:
    """The checkout a run was started in."""

    commit: str
    """The full hash."""
    dirty: bool
    """Whether tracked files differ from the commit. Untracked ones, such as `runs/`, do not count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostFacts:
    """The process and the machine it runs on."""

    host: str
    """The machine's name."""
    pid: int
    """This process."""
    cwd: str | None
    """The current folder; None when it was removed."""
    argv: tuple[str, ...]
    """The command line, as `sys.orig_argv` has it: the interpreter and its options too."""
    cpus: int
    """CPUs this process may use."""


def versions() -> dict[str, str | None]:
    """Versions of python, torch, harness, numpy and platform; None for what is not there. Imports none."""
    from harness import __version__  # not at the top: this module is below the package root

    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "harness": __version__,
        "numpy": _version("numpy"),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def git_state(cwd: Path) -> GitState | None:
    """Commit and dirty flag of the checkout that holds `cwd`.

    None outside a checkout, before its first commit, and without git. Never raises, takes at most two
    seconds, and changes nothing in the checkout, its index included.
    """
    command = [
        "git",
        "-c",
        "core.fsmonitor=false",
        "status",
        "--porcelain=v2",
        "--branch",
        "--untracked-files=no",
    ]
    try:
        found = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return _read_status(found.stdout)


def host_facts() -> HostFacts:
    """What this process is and where it runs."""
    try:
        cwd = os.getcwd()  # noqa: PTH109 - Path.cwd() is the same call
    except OSError:
        cwd = None
    return HostFacts(
        host=socket.gethostname(),
        pid=os.getpid(),
        cwd=cwd,
        argv=tuple(sys.orig_argv),
        cpus=len(os.sched_getaffinity(0)),
    )


def _read_status(output: bytes) -> GitState | None:
    commit, dirty = None, False
    for line in output.splitlines():
        if line.startswith(b"# branch.oid "):
            commit = line.removeprefix(b"# branch.oid ").decode("ascii", "replace")
        elif not line.startswith(b"#"):
            dirty = True
    return None if commit is None or commit.startswith("(") else GitState(commit=commit, dirty=dirty)


def _version(package: str) -> str | None:
    # an imported package knows better: torch's distribution leaves out the build (+cpu) in some installs
    loaded = getattr(sys.modules.get(package), "__version__", None)
    if loaded is not None:
        return str(loaded)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
