"""Builds what a session runs on, in the order in which things can go wrong.

First everything that needs no disk is checked, then the directory is claimed, then the checkpoint is read. An error
up to here leaves no trace of a run behind.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

from harness.capture.recipe import Recipe
from harness.checkpoint.paths import CheckpointPaths
from harness.distributed import RankFacts
from harness.errors import ConfigError
from harness.loggers.base import Logger
from harness.loggers.jsonl import JsonlLogger
from harness.loggers.registry import make_logger
from harness.loggers.rules import inner_logger
from harness.loggers.text import TextLogger
from harness.loop.options import ALWAYS_ON, SessionOptions
from harness.naming.fields import slug
from harness.naming.run_name import NameGenerator, ResolvedName, resolve_run_name
from harness.naming.template import Template
from harness.run.directory import RunDirectory
from harness.run.placement import check_placement


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """Everything about a session that was checked before the disk was touched."""

    name: ResolvedName
    """Where the run's name comes from."""
    ranks: RankFacts
    """Who this process is."""
    recipe: Recipe
    """What to capture."""
    loggers: tuple[Logger, ...]
    """Destinations, not opened yet."""
    checkpoint_paths: CheckpointPaths
    """Where checkpoints go."""


def check(options: SessionOptions, environ: Mapping[str, str] = os.environ) -> Checked:
    """Resolve and check all options that need no disk.

    Raises:
        HarnessError: An option cannot work; the kind says which part.
    """
    ranks = RankFacts.from_environ(environ)
    if ranks.world_size > 1:
        raise ConfigError(
            f"WORLD_SIZE={ranks.world_size}: this version trains in one process",
            hint="start it without torchrun; several processes are planned",
        )
    # Composer's trio belongs together: a name cannot be checked without the folder.
    paths = CheckpointPaths.compile(
        folder=options.save_folder,
        filename=options.save_filename,
        latest=options.save_latest_filename,
        world_size=ranks.world_size,
        overwrite=options.save_overwrite,
    )
    _check_placement(paths)
    return Checked(
        name=resolve_run_name(options.run_name, environ),
        ranks=ranks,
        recipe=_load_recipe(options.profile),
        loggers=_make_loggers(options),
        checkpoint_paths=paths,
    )


def _check_placement(paths: CheckpointPaths) -> None:
    """A link to the latest that is called `run.json` would take its place."""
    check_placement(paths.folder, option="save_folder")
    for option, name in (("save_filename", paths.filename), ("save_latest_filename", paths.latest)):
        if name is not None:
            whole = Template.compile(f"{paths.folder.text}/{name.text}", option=option)
            check_placement(whole, option=option)


def _load_recipe(profile: str | os.PathLike[str] | Recipe | None) -> Recipe:
    return Recipe.load(Path(profile) if isinstance(profile, os.PathLike) else profile)


def _make_loggers(options: SessionOptions) -> tuple[Logger, ...]:
    if isinstance(options.loggers, str):
        raise ConfigError(f"loggers={options.loggers!r} is a string, not a list", hint=f"give [{options.loggers!r}]")
    for spec in options.loggers:
        if not isinstance(spec, str) and not (hasattr(spec, "log_metrics") and isinstance(spec.name, str)):
            raise ConfigError(
                f"loggers holds a {type(spec).__name__}, which is no logger: it needs a name, log_metrics and more",
                hint="give a name such as 'tensorboard', or a subclass of harness.loggers.base.BaseLogger",
            )
    asked = [spec for spec in options.loggers if not (isinstance(spec, str) and spec in ALWAYS_ON)]
    twice = {spec for spec in asked if isinstance(spec, str) and asked.count(spec) > 1}
    if twice:
        raise ConfigError(f"logger {sorted(twice)[0]!r} is given twice", hint="name each logger once")
    # One of the user's own takes the place of ours: two would write the same lines to the same files.
    given = {kind.name for kind in (JsonlLogger, TextLogger) if any(isinstance(_inner(spec), kind) for spec in asked)}
    always = [name for name in ALWAYS_ON if name not in given]
    return tuple(make_logger(spec) if isinstance(spec, str) else spec for spec in (*always, *asked))


def _inner(spec: str | Logger) -> str | Logger:
    return spec if isinstance(spec, str) else inner_logger(spec)


def claim(options: SessionOptions, name: ResolvedName) -> RunDirectory:
    """Make the run's directory this process's own.

    Raises:
        RunDirError: It is there and nobody said what to do with it, a live process holds it, or the disk refuses.
    """
    if name.name is not None:
        return RunDirectory.claim(options.root_path, name.name, resume=options.resume, overwrite=options.overwrite)
    if options.resume is True or options.overwrite:
        option = "resume" if options.resume else "overwrite"
        raise ConfigError(f"{option} without a run name: there is no run it could mean", hint="give the run's name")
    return RunDirectory.claim_generated(options.root_path, NameGenerator())


def static_fields(run_name: str, ranks: RankFacts, attempt: int) -> dict[str, int | str]:
    """The template fields that stay the same for a whole attempt. Times are UTC, of its start."""
    now = time.gmtime()
    return {
        "run_name": run_name,
        "rank": ranks.rank,
        "local_rank": ranks.local_rank,
        "node_rank": ranks.node_rank,
        "world_size": ranks.world_size,
        "local_world_size": ranks.local_world_size,
        "attempt": attempt,
        "hostname": slug(gethostname()),
        "date": time.strftime("%Y%m%d", now),
        "time": time.strftime("%H%M%S", now),
    }
