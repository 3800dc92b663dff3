"""Checkpoints: a state saved whole or not at all, found again after anything, and the place in the data it
was at.

Importing this package imports no torch; `paths`, `index` and `rotate` need none either.
"""

from __future__ import annotations

from harness.checkpoint.paths import CheckpointFolder, CheckpointPaths

__all__ = ["CheckpointFolder", "CheckpointPaths"]
