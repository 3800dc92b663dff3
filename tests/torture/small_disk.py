"""A disk that is really full: a small tmpfs in a mount namespace of a process's own, without root."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def on_small_disk(folder: Path, size: str) -> list[str]:
    """The words to put before a command so that it finds a disk of this size at a folder.

    The command runs as its user's own root. Nobody but it and its children sees the disk. Skips the test where no such
    namespace can be made.
    """
    mount = f'mount -t tmpfs -o size={size} none "{folder}" && exec "$@"'
    words = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs unshare -rm (user namespaces) to mount a small disk")
    return words
