"""Loads the step file of a rank (`steps-rank{rank}.jsonl`) into columns.

A run of a million steps is a file of a few hundred MB: it is decoded in blocks of lines, and a file that a
killed process left with half a last line is read without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.errors import TraceFormatError
from harness.trace.salvage import DECODE_ERRORS

CAPTURE_STATES = ("off", "warmup", "active", "adjacent")
"""What the profiler did during a step; `adjacent` is next to a window and pays for opening or closing it."""
PHASES = ("data", "forward", "backward", "optimizer", "harness", "other")
"""The phases every step has; phases of the user come after them."""

_BLOCK_BYTES = 4 << 20
_SUFFIX = "_us"
_NOT_PHASES = frozenset({"step_us", "eval_us"})
_Line = dict[str, int | float | str]
_DECODER = msgspec.json.Decoder(_Line)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepTable:
    """The steps of one rank; every array has one element per step, in file order."""

    step: NDArray[np.int64]
    """Global step, from 1."""
    time_s: NDArray[np.float64]
    """Unix time at the step's start, s."""
    epoch: NDArray[np.int64]
    step_us: NDArray[np.float64]
    """Length of the step without evaluation, µs."""
    eval_us: NDArray[np.float64]
    """Evaluation after the step, µs; 0 for most steps."""
    phases: dict[str, NDArray[np.float64]]
    """Phase name to its part of the step, µs; PHASES first, then the user's by name."""
    capture: NDArray[np.uint8]
    """Index into CAPTURE_STATES."""
    torn: bool
    """Whether the last line was half written and left out."""

    def __len__(self) -> int:
        return len(self.step)


def read_steps(path: Path | str) -> StepTable:
    """Read a step file; half a last line is left out.

    Raises:
        TraceFormatError: It cannot be read, or a line is not a step; the message has file and line.
    """
    path = Path(path)
    columns = _Columns()
    first_line = 1
    torn = False
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                block, torn = _without_torn_line(block + file.readline())
                _add_block(columns, path, block, first_line)
                first_line += block.count(b"\n")
    except OSError as error:
        raise TraceFormatError(f"{path}: cannot be read: {error.strerror or error}") from error
    return columns.build(torn)


def _add_block(columns: _Columns, path: Path, block: bytes, first_line: int) -> None:
    try:
        columns.add(_DECODER.decode_lines(block))
    except (*DECODE_ERRORS, KeyError):
        raise _line_error(path, block, first_line) from None


class _Columns:
    """Columns in blocks; a phase that appears late is 0 before."""

    def __init__(self) -> None:
        self._fixed: dict[str, list[NDArray[Any]]] = {
            "step": [np.empty(0, np.int64)],
            "time": [np.empty(0, np.float64)],
            "epoch": [np.empty(0, np.int64)],
            "step_us": [np.empty(0, np.float64)],
            "eval_us": [np.empty(0, np.float64)],
            "capture": [np.empty(0, np.uint8)],
        }
        self._phases: dict[str, list[NDArray[np.float64]]] = {name: [np.empty(0)] for name in PHASES}
        self._length = 0

    def add(self, lines: list[_Line]) -> None:
        if not lines:
            return
        states = {name: code for code, name in enumerate(CAPTURE_STATES)}
        fixed: dict[str, list[Any]] = {
            "step": [line["step"] for line in lines],
            "time": [line["time"] for line in lines],
            "epoch": [line.get("epoch", 0) for line in lines],
            "step_us": [line["step_us"] for line in lines],
            "eval_us": [line.get("eval_us", 0.0) for line in lines],
            "capture": [states[line.get("capture", "off")] for line in lines],  # type: ignore[index]
        }
        for key, values in fixed.items():
            self._fixed[key].append(_array(values, self._fixed[key][0].dtype))
        for name in self._phase_names(lines):
            key = name + _SUFFIX
            self._phases[name].append(_array([line.get(key, 0.0) for line in lines], np.dtype(np.float64)))
        self._length += len(lines)

    def _phase_names(self, lines: list[_Line]) -> list[str]:
        for key in set().union(*lines):
            if key.endswith(_SUFFIX) and key not in _NOT_PHASES:
                self._phases.setdefault(key.removesuffix(_SUFFIX), [np.zeros(self._length)])
        return list(self._phases)

    def build(self, torn: bool) -> StepTable:
        fixed = {key: np.concatenate(blocks) for key, blocks in self._fixed.items()}
        user_phases = sorted(self._phases.keys() - set(PHASES))
        return StepTable(
            step=fixed["step"],
            time_s=fixed["time"],
            epoch=fixed["epoch"],
            step_us=fixed["step_us"],
            eval_us=fixed["eval_us"],
            phases={name: np.concatenate(self._phases[name]) for name in (*PHASES, *user_phases)},
            capture=fixed["capture"],
            torn=torn,
        )


def _array(values: list[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers as an array.

    Raises:
        ValueError: There is a text among them, or a fraction or a huge number where a whole one belongs.
    """
    array = np.array(values)
    if array.dtype.kind not in "iuf" or (array.dtype.kind == "f" and dtype.kind != "f"):
        raise ValueError("expected numbers")
    return array.astype(dtype)


def _without_torn_line(data: bytes) -> tuple[bytes, bool]:
    """Cut off a last line that has no end and does not decode."""
    end = data.rfind(b"\n") + 1
    last = data[end:]
    if not last.strip():
        return data[:end], False
    try:
        _DECODER.decode(last)
    except DECODE_ERRORS:
        return data[:end], True
    return data, False


def _line_error(path: Path, block: bytes, first_line: int) -> TraceFormatError:
    """Which line of a block is wrong, and why."""
    for number, line in enumerate(block.split(b"\n"), first_line):
        try:
            if line.strip():
                _Columns().add([_DECODER.decode(line)])
        except (*DECODE_ERRORS, KeyError) as error:
            reason = f"missing or unknown value {error}" if isinstance(error, KeyError) else str(error)
            return TraceFormatError(
                f"{path}, line {number}: not a step: {reason}",
                hint='expected {"step": …, "time": …, "step_us": …, "<phase>_us": …, "capture": …}',
            )
    return TraceFormatError(f"{path}: lines {first_line} and on do not fit together")
