"""The names of what the harness itself keeps in a run directory; all else there comes from templates."""

from __future__ import annotations

import re

MANIFEST_NAME = "run.json"
RECIPE_NAME = "recipe.toml"
LOCK_NAME = ".lock"
PRIVATE_NAME = ".capture"
"""A folder of mode 0700 for the profiler's raw files, which are written under constant names."""
RESERVED_NAMES = frozenset({MANIFEST_NAME, RECIPE_NAME, LOCK_NAME, PRIVATE_NAME})
"""What no template may name."""

TRASH_PREFIX = ".trash-"
TRASH = re.compile(r"\.trash-.+-[0-9a-f]{16}")
"""A run that was moved aside in the root, to be removed."""
MANIFEST_LEFTOVER = re.compile(r"\.run\.json\.[0-9a-f]{16}\.tmp")
"""A first manifest whose writer was killed."""

DIRECTORY_MODE = 0o755
PRIVATE_MODE = 0o700
