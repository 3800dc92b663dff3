"""What went wrong in a run without ending it, read from the health in its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_CAPTURE = {
    "windows_failed": "capture windows failed",
    "windows_skipped": "capture windows were skipped because another profiler was in use",
    "windows_dropped": "capture windows were cut before their first recorded step",
    "traces_failed": "traces could not be finished",
}


def find_problems(health: Mapping[str, Any]) -> list[str]:
    """The problems as sentences, the gravest part first; none for a run in good health."""
    return [
        *_of_checkpoints(_table(health, "checkpoints")),
        *_of_capture(_table(health, "capture")),
        *_of_sampler(_table(health, "sampler")),
        *(line for name, one in _table(health, "loggers").items() for line in _of_logger(name, one)),
        *_of_steps_file(_table(health, "steps_file")),
        *(line for name, one in _table(health, "writer").items() for line in _of_job(name, one)),
    ]


def _table(health: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found = health.get(part)
    return found if isinstance(found, dict) else {}


def _of_checkpoints(checkpoints: Mapping[str, Any]) -> Iterator[str]:
    if checkpoints.get("unsaved"):
        yield str(checkpoints["unsaved"])
    if checkpoints.get("failed"):
        yield f"{checkpoints['failed']} saves of a checkpoint failed"


def _of_capture(capture: Mapping[str, Any]) -> Iterator[str]:
    for key, text in _CAPTURE.items():
        if capture.get(key):
            yield f"{capture[key]} {text}"
    yield from (f"capture: {error}" for error in capture.get("errors") or ())


def _of_sampler(sampler: Mapping[str, Any]) -> Iterator[str]:
    if sampler.get("died"):
        yield f"the system sampler died{_why(sampler)}"
    elif sampler.get("errors"):
        yield f"the system sampler had {sampler['errors']} errors{_why(sampler)}"
    if sampler.get("missed"):
        yield f"the system sampler was late for {sampler['missed']} samples"


def _of_logger(name: str, logger: Mapping[str, Any]) -> Iterator[str]:
    faults = [
        f"{logger[key]} {text}"
        for key, text in (("errors", "errors"), ("dropped_records", "records dropped"))
        if logger.get(key)
    ]
    if logger.get("hung"):
        faults.append("it hung at the end")
    if faults:
        yield f"logger {name}: {', '.join(faults)}{_why(logger)}"


def _of_steps_file(file: Mapping[str, Any]) -> Iterator[str]:
    if file.get("dropped_lines"):
        yield f"{file['dropped_lines']} steps are missing from the step file{_why(file)}"


def _of_job(name: str, job: Mapping[str, Any]) -> Iterator[str]:
    if job.get("errors") or job.get("hangs"):
        yield f"writer thread, {name}: {job.get('errors', 0)} errors, {job.get('hangs', 0)} hangs{_why(job)}"


def _why(health: Mapping[str, Any]) -> str:
    return f" (the last: {health['last_error']})" if health.get("last_error") else ""
