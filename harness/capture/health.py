"""What became of a rank's capture windows and what they cost, for run.json."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields
from typing import Any

logger = logging.getLogger(__name__)

_MAX_ERRORS = 20


@dataclass(kw_only=True, slots=True)
class WindowHealth:
    """Counts of windows, times in ns on the training thread, and the first errors."""

    windows_opened: int = 0
    """Windows in which a profiler was started."""
    windows_skipped: int = 0
    """Windows that were due while another profiler of the process was in use."""
    windows_dropped: int = 0
    """Windows that were cut before their first recorded step."""
    windows_failed: int = 0
    """Windows in which torch.profiler failed, wrote nothing, or was taken over; no trace of them exists."""
    open_ns: int = 0
    """Building and starting profilers."""
    close_ns: int = 0
    """Stopping them and starting the children, without `export_ns`."""
    export_ns: int = 0
    """torch's own export of the raw traces."""
    errors: list[str] = field(default_factory=list)
    """The first texts; the counts say how many there were."""
    _told: set[str] = field(default_factory=set, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}

    def note(self, kind: str, text: str) -> None:
        """Keep an error, and warn if it is the first of its kind. Any thread."""
        if len(self.errors) < _MAX_ERRORS:
            self.errors.append(text)
        if kind not in self._told:
            self._told.add(kind)
            logger.warning("%s", text)
