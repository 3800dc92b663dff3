"""The names of what the harness itself keeps in a run directory; all else there comes from templates."""

from __future__ import annotations

import re

MANIFEST_NAME = "run.json"
RECIPE_NAME = "recipe.toml"
LOCK_NAME = ".lock"
PRIVATE_NAME = ".capture"
"""A folder of mode 0700 for the profiler's raw files, which are written under constant names."""
RESERVED_NAMES = frozenset({MANIFEST_NAME, RECIPE_NAME, LOCK_NAME, PRIVATE_NAME})
"""What no template may name, beside the step files."""
STEPS_NAME = re.compile(r"steps-rank[0-9]+\.jsonl")
LOG_NAME = re.compile(r"(?:metrics|system)-rank[0-9]+\.jsonl|logs-rank[0-9]+\.txt")
"""What the loggers that every run has write to, unless they are told otherwise."""

TRASH_PREFIX = ".trash-"
TRASH = re.compile(r"\.trash-.+-[0-9a-f]{16}")
"""A run that was moved aside in the root, to be removed."""
MANIFEST_LEFTOVER = re.compile(r"\.run\.json\.[0-9a-f]{16}\.tmp")
"""A first manifest whose writer was killed."""

DIRECTORY_MODE = 0o755
PRIVATE_MODE = 0o700


def is_own_name(name: str) -> bool:
    """Whether a name in the run directory is that of a file of the harness's own."""
    return name in RESERVED_NAMES or STEPS_NAME.fullmatch(name) is not None
