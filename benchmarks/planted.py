"""Regressions on purpose: edits of the package that make a step slower, to see whether the comparison finds them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sides import Side

COPIED = ("harness", "benchmarks", "profiles", "pyproject.toml")
_BUSY = """\
        from time import perf_counter_ns
        until_ns = perf_counter_ns() + {ns}
        while perf_counter_ns() < until_ns:
            pass
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plant:
    """One edit: `code` is put in front of the one line that holds `before`."""

    what: str
    """In words, for the report."""
    file: str
    """Below the package."""
    before: str
    """A part of exactly one line."""
    code: str
    """Whole lines."""


def _busy_logger(microseconds: int) -> Plant:
    return Plant(
        what=f"a busy loop of {microseconds} µs for each record of the JSONL logger",
        file="loggers/jsonl.py",
        before='self._add_metrics({"step": step',
        code=_BUSY.format(ns=microseconds * 1000),
    )


PLANTS = (
    _busy_logger(1),
    _busy_logger(3),
    _busy_logger(10),
    _busy_logger(50),
    Plant(
        what="an extra .item() of the loss in each step",
        file="trainer/train_step.py",
        before="value = loss.item()",
        code="            loss.item()\n",
    ),
    Plant(
        what="an fsync of the step file in each step",
        file="loop/steps.py",
        before="if step >= capture.next_boundary:",
        code="                import os\n                os.fsync(self._attempt._steps_file._fd)\n",
    ),
)


def plant(plant: Plant | None, source: Side, folder: Path, *, name: str) -> Side:
    """Copy a side into a folder, with an edit or without.

    Args:
        plant: The edit; None for none.
        source: What is copied.
        folder: Emptied before.
        name: `base` or `new`.

    Raises:
        ValueError: The line is not there exactly once: the package has changed since the edit was written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for part in COPIED:
        path = source.folder / part
        if path.is_dir():
            shutil.copytree(path, folder / part, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy(path, folder / part)
    if plant is not None:
        path = folder / "harness" / plant.file
        path.write_text(planted(plant, path.read_text(encoding="utf-8")), encoding="utf-8")
    return Side(name=name, folder=folder.resolve(), commit=source.commit, dirty=source.dirty or plant is not None)


def planted(plant: Plant, text: str) -> str:
    """The text of a file with the edit in it.

    Raises:
        ValueError: The line is not there exactly once.
    """
    lines = text.splitlines(keepends=True)
    places = [index for index, line in enumerate(lines) if plant.before in line]
    if len(places) != 1:
        raise ValueError(f"{plant.file} has {len(places)} lines with {plant.before!r}; expected one")
    return "".join([*lines[: places[0]], plant.code, *lines[places[0] :]])
