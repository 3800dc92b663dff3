"""The machine that something was measured on, in words."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path


def machine() -> dict[str, object]:
    """What it was measured on."""
    return {"cpu": _cpu_name(), "num_cpus": os.cpu_count(), "system": platform.platform(), "num_torch_threads": 1}


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
