"""Puts the phases of a step on the trace, recorded by torch itself so that they enclose their operators."""

from __future__ import annotations

import re
from typing import Any

from torch.autograd.profiler import record_function

_UNSAFE_IN_LABEL = re.compile(r"[^A-Za-z0-9_.-]")


class PhaseAnnotator:
    """The `phase/<name>` ranges of a window, on torch's own clock. Those that are open lie inside each other."""

    def __init__(self) -> None:
        self._labels: dict[str, str] = {}
        self._open: list[tuple[str, Any]] = []

    def switch(self, *phase_names: str) -> None:
        """Have ranges open for these phases, outermost first, and for no others.

        What is open already and begins the list stays open: a range that ended and began again inside of an
        operator or of a range of the user's would overlap it in part.

        Args:
            phase_names: Letters, digits, `_`, `.`, `-`; anything else becomes `_`, or torch would lose it.
        """
        num_kept = 0
        for name, (open_name, _) in zip(phase_names, self._open, strict=False):
            if name != open_name:
                break
            num_kept += 1
        self._close_to(num_kept)
        for name in phase_names[num_kept:]:
            span: Any = record_function(self._label(name))
            span.__enter__()
            self._open.append((name, span))

    def close(self) -> None:
        """End all ranges that are open."""
        self._close_to(0)

    def _close_to(self, num_kept: int) -> None:
        while len(self._open) > num_kept:
            self._open.pop()[1].__exit__(None, None, None)

    def _label(self, name: str) -> str:
        label = self._labels.get(name)
        if label is None:
            label = self._labels[name] = "phase/" + _UNSAFE_IN_LABEL.sub("_", name)
        return label
