"""Reads a run from its directory: what `train` shows at its end and `show` at any time."""

from __future__ import annotations

import difflib
import errno
import mmap
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from harness.errors import RunDirError, TraceFormatError
from harness.run.directory import RunDirectory, list_runs
from harness.run.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from harness.report.summary import RunSummary

_EVAL = b"/eval/"
_LINES = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """What a run's files say."""

    directory: RunDirectory
    """Where they are."""
    manifest: Manifest
    """From `run.json`; a dead run that calls itself running is `crashed` here."""
    steps: RunSummary | None
    """From the step file; None where there is none, or none that can be read."""
    steps_error: str | None
    """Why the step file cannot be read."""
    evaluation: Evaluation | None
    """The last one logged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation found."""

    step: int
    """The last step before it."""
    metrics: dict[str, float | str]
    """By short name, such as `loss`; NaN and infinities as text."""


def find_run(root: Path, run_name: str) -> tuple[RunDirectory, Manifest]:
    """A run of `root`, and its `run.json`.

    Raises:
        RunNameError: The name breaks the rules.
        RunDirError: There is no such run (the hint has names like it), or its `run.json` cannot be read.
    """
    try:
        directory = RunDirectory.find(root, run_name)
        return directory, _read_manifest(directory)
    except RunDirError as error:
        if error.errno != errno.ENOENT:
            raise
        raise RunDirError(f"there is no run {run_name!r} in {root}", hint=_near(root, run_name)) from error


def _near(root: Path, run_name: str) -> str:
    near = difflib.get_close_matches(run_name, [run.run_name for run in list_runs(root)], n=3)
    return f"did you mean {', '.join(near)}?" if near else f"harness ls --root {shlex.quote(str(root))} lists the runs"


def read_run(root: Path, run_name: str) -> RunFiles:
    """Read a run of `root`.

    Raises:
        RunNameError: The name breaks the rules.
        RunDirError: There is no such run, or its `run.json` cannot be read.
    """
    return _read_files(*find_run(root, run_name))


def read_directory(directory: RunDirectory) -> RunFiles:
    """Read the run of a directory.

    Raises:
        RunDirError: Its `run.json` cannot be read.
    """
    return _read_files(directory, _read_manifest(directory))


def _read_files(directory: RunDirectory, manifest: Manifest) -> RunFiles:
    steps, steps_error = _read_steps(directory.steps_path(manifest.rank))
    return RunFiles(
        directory=directory,
        manifest=manifest,
        steps=steps,
        steps_error=steps_error,
        evaluation=last_evaluation(directory.metrics_path(manifest.rank)),
    )


def _read_manifest(directory: RunDirectory) -> Manifest:
    manifest = read_manifest(directory.manifest_path)
    if manifest.status == "running" and not directory.is_alive():
        manifest = read_manifest(directory.manifest_path)  # it may have ended properly between the two looks
        if manifest.status == "running":
            manifest.status = "crashed"
            manifest.attempts[-1:] = [
                msgspec.structs.replace(last, status="crashed") for last in manifest.attempts[-1:]
            ]
    return manifest


def _read_steps(path: Path) -> tuple[RunSummary | None, str | None]:
    from harness.report.summary import summarise
    from harness.trace.steps import read_steps

    if not path.exists():
        return None, None
    try:
        return summarise(read_steps(path)), None
    except TraceFormatError as error:
        return None, error.message


def last_evaluation(path: Path) -> Evaluation | None:
    """The last line of a metrics file that came from an evaluation; None where there is none.

    The file is searched from its end, so its length does not matter.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            end = len(data)
            while (place := data.rfind(_EVAL, 0, end)) >= 0:
                start = data.rfind(b"\n", 0, place) + 1
                stop = data.find(b"\n", place)
                found = _evaluation(data[start : stop if stop >= 0 else len(data)])
                if found is not None:
                    return found
                end = start
    except (OSError, ValueError):  # not there, or empty
        pass
    return None


def _evaluation(line: bytes) -> Evaluation | None:
    """What a line says of an evaluation; None for a torn one."""
    try:
        values: Mapping[str, Any] = _LINES.decode(line)
        step = int(values["step"])
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError, UnicodeDecodeError):
        return None
    metrics = {
        name.removeprefix("metrics/eval/") if name.startswith("metrics/eval/") else "loss": value
        for name, value in values.items()
        if name.startswith("metrics/eval/") or name == "loss/eval/total"
    }
    return Evaluation(step=step, metrics=metrics) if metrics else None
