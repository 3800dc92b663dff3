"""What the loggers of services share: the package that has to be there, and an identity that survives a resume."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

from harness.errors import MissingExtraError
from harness.loggers.base import RunInfo

_DIGITS = 40


def require(package: str, *, logger: str, extra: str) -> None:
    """See that a package is installed, without importing it.

    Args:
        package: The name that is imported.
        logger: Who needs it, for the error.
        extra: The extra of this distribution that brings it.

    Raises:
        MissingExtraError: It is not; says the pip command.
    """
    if find_spec(package) is None:
        raise MissingExtraError(
            f"the logger {logger!r} needs the package {package!r}, which is not installed",
            hint=f'pip install "profiling-harness[{extra}]"',
        )


@contextmanager
def default_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for as long as a client reads them. What the user has set stays as it is."""
    added = [name for name in variables if name not in os.environ]
    os.environ.update({name: variables[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def run_identity(run: RunInfo) -> str:
    """Forty hexadecimal digits that are the same for all attempts of a run, and for no other run.

    Made of the root, the name, and when the run was first started: one that took the place of another
    (`overwrite`), or a copy in another root, is a run of its own. Ranks other than 0 have one each.
    """
    facts = [str(run.root.resolve()), run.run_name, run.started, *([str(run.rank)] if run.rank else [])]
    return hashlib.sha256("\0".join(facts).encode(errors="surrogateescape")).hexdigest()[:_DIGITS]


def name_of_rank(run: RunInfo) -> str:
    """The run's name, with the rank where it is not 0."""
    return f"{run.run_name}-rank{run.rank}" if run.rank else run.run_name
