"""Puts the phases of a step on the trace, recorded by torch itself so that they enclose their operators."""

from __future__ import annotations

import re
from typing import Any

from torch.autograd.profiler import record_function

_UNSAFE_IN_LABEL = re.compile(r"[^A-Za-z0-9_.-]")


class PhaseAnnotator:
    """The `phase/<name>` ranges of a window, one open at a time, on torch's own clock."""

    def __init__(self) -> None:
        self._labels: dict[str, str] = {}
        self._open: Any = None

    def switch(self, phase_name: str) -> None:
        """End the range that is open, if one is, and begin the phase's.

        Args:
            phase_name: Letters, digits, `_`, `.`, `-`; anything else becomes `_`, or torch would lose it.
        """
        self.close()
        label = self._labels.get(phase_name)
        if label is None:
            label = self._labels[phase_name] = "phase/" + _UNSAFE_IN_LABEL.sub("_", phase_name)
        self._open = record_function(label)
        self._open.__enter__()

    def close(self) -> None:
        """End the range that is open, if one is."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None
