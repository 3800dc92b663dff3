"""Keeps our windows and a profiler of the user's own apart: a process has only one.

torch 2.13 does not guard itself. A second profiler that is prepared while the first one warms up or records
takes its session away without a word, and the first one's `stop` or `export_chrome_trace` then ends the
process with a segmentation fault. So we look before a window opens, and again before every call that touches
the session.
"""

from __future__ import annotations

import gc

import torch
from torch.autograd import profiler as autograd_profiler

_STEP_KEY = "ProfilerStep"


class ProfilerClaim:
    """The knowledge that torch's only profiler session is ours.

    Every `torch.profiler.profile` enters itself into a table when it is built and takes itself out when its
    `with` ends. We put a mark of our own there: when it is gone or changed, somebody else was there.
    """

    def __init__(self) -> None:
        self._mark: _Mark | None = None

    def take(self) -> None:
        """Mark the session as ours; to be called right after every call that may touch the table."""
        table = _step_table()
        if table is not None:
            self._mark = _Mark(table.get(_STEP_KEY, 0))
            table[_STEP_KEY] = self._mark

    def is_ours(self, *, recording: bool) -> bool:
        """Whether nobody else has touched the session since `take`.

        Args:
            recording: Whether our own session records by now (else it warms up).
        """
        table = _step_table()
        if table is not None and table.get(_STEP_KEY) is not self._mark:
            return False
        return _is_recording() == recording

    def release(self) -> None:
        """Take the mark away."""
        table = _step_table()
        if table is not None and self._mark is not None and table.get(_STEP_KEY) is self._mark:
            del table[_STEP_KEY]
        self._mark = None


def other_profiler() -> str | None:
    """What another profiler in this process is doing that rules a window out; None where there is none.

    To be called before a window's own profile object is built. Where a profile object was left open it looks
    through all objects, tens of milliseconds in a large process.
    """
    if _is_recording():
        return "another torch profiler is recording"
    table = _step_table()
    if (table is None or _STEP_KEY in table) and any(
        type(item) is torch.profiler.profile and not _is_finished(item) for item in gc.get_objects()
    ):
        return "another torch.profiler.profile exists that has not finished"
    return None


class _Mark(int):
    """A step count like any other in the table, except that it can be recognised."""


def _step_table() -> dict[str, int] | None:
    """Steps by who counts them; not part of torch's public interface, so it may be gone one day."""
    table: dict[str, int] | None = getattr(autograd_profiler.KinetoStepTracker, "_step_dict", None)
    return table


def _is_recording() -> bool:
    """On this thread, or (by the second flag) on any."""
    return bool(torch._C._autograd._profiler_enabled() or autograd_profiler._is_profiler_enabled)


def _is_finished(profile: torch.profiler.profile) -> bool:
    """It has stopped. One that waits or warms up sets no flag, but its start would take our session away."""
    return profile.profiler is not None and profile.profiler.kineto_results is not None and not profile.step_rec_fn
