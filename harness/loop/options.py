"""What a session is asked to do, checked as far as it can be without touching the disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.checkpoint.best import SaveBest
from harness.checkpoint.paths import DEFAULT_FILENAME, DEFAULT_FOLDER, DEFAULT_LATEST
from harness.errors import ConfigError
from harness.naming.template import Template
from harness.run.placement import check_placement
from harness.units import Duration, DurationUnit

if TYPE_CHECKING:
    from harness.capture.recipe import Recipe
    from harness.loggers.base import Logger

DEFAULT_ROOT = "runs"
ALWAYS_ON = ("jsonl", "text")
"""Loggers every run has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionOptions:
    """Options of `harness.session`, the same as the keyword arguments of `Trainer`."""

    run_name: str | None = None
    """The run's name; else `HARNESS_RUN_NAME`, `COMPOSER_RUN_NAME`, `RUN_NAME`, else a generated one."""
    root: str | os.PathLike[str] | None = None
    """Folder that holds the runs; else `HARNESS_ROOT`, else `runs`."""
    profile: str | os.PathLike[str] | Recipe | None = None
    """Capture recipe: a name (`harness profiles` lists them), a TOML file, or a Recipe; None captures nothing."""
    resume: bool | Literal["auto"] = False
    """Go on with the run of this name from its newest checkpoint; `auto` starts fresh where there is none."""
    overwrite: bool = False
    """Throw an existing run of this name away first."""
    load_path: str | os.PathLike[str] | None = None
    """Start a new run from this checkpoint of another run, or from its newest good one if this is a run's directory. A
    run that is resumed goes on from its own checkpoint and needs this only while it has none."""
    load_weights_only: bool = False
    """Load modules only and begin at step 1; takes a plain `state_dict` too. Else all is loaded: the state of all
    objects, counts, random numbers and the place in the data, as on resume."""
    loggers: Sequence[str | Logger] = ()
    """Loggers beside JSONL and text: `tensorboard`, `progress`, `wandb`, `comet`, `mlflow`,
    `my_pkg:MyLogger`, or instances."""
    log_interval: str | int | Duration = "1ba"
    """How often metrics are taken: `1ba` takes each step's. A bare int means epochs."""
    save_interval: str | int | Duration | None = None
    """How often a checkpoint is saved; None saves none."""
    save_folder: str = DEFAULT_FOLDER
    """Template of the checkpoint folder."""
    save_filename: str = DEFAULT_FILENAME
    """Template of a checkpoint's file name."""
    save_latest_filename: str | None = DEFAULT_LATEST
    """Template of the link to the newest checkpoint; None makes none."""
    save_num_checkpoints_to_keep: int = -1
    """How many checkpoints stay on disk; -1 keeps all."""
    save_best: str | SaveBest | None = None
    """A metric whose best checkpoints stay too: `loss/eval/total:min`, `metrics/eval/accuracy:max:3`. A step that is
    one of the best is saved, and `best-rank{rank}.pt` points to the best one."""
    save_weights_only: bool = False
    """Whether checkpoints hold the modules of `state` alone. No run can go on from them."""
    save_overwrite: bool = False
    """Whether a checkpoint may take the place of another step's: `save_filename` may then be the same for all."""
    save_async: bool = True
    """Whether training waits only until a checkpoint is copied in memory. The last one is always waited for."""
    on_save_error: Literal["raise", "warn"] = "raise"
    """What happens when a checkpoint cannot be written: the run fails, or it goes on and `run.json` says so."""
    trace_filename: str = "{run_name}/traces/rank{rank}.{batch:06d}.pt.trace.json.gz"
    """Template of a trace file; `batch` is the first recorded step."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """What a checkpoint holds, by name: objects with `state_dict` and `load_state_dict`."""
    config: Mapping[str, object] = field(default_factory=dict)
    """Recorded in the manifest and shown by loggers as hyperparameters."""
    device: str | None = None
    """Where the run trains, such as `cuda:0`; decides whether the profiler records CUDA. None: on CUDA, if this process
    has begun to use it when a window opens."""
    handle_signals: bool = True
    """Whether SIGINT, SIGTERM and SIGUSR1 end the run cleanly."""
    grace: str | Duration = "25s"
    """How long after SIGTERM or SIGUSR1 the process may take to finish its step, save and write everything out. Then it
    is ended, and the checkpoint before stands."""

    def __post_init__(self) -> None:
        if self.on_save_error not in ("raise", "warn"):
            raise ConfigError(f"on_save_error={self.on_save_error!r} is not understood", hint='give "raise" or "warn"')
        if self.resume not in (True, False, "auto"):
            raise ConfigError(f"resume={self.resume!r} is not understood", hint='give True, False or "auto"')
        if self.resume and self.overwrite:
            raise ConfigError("resume and overwrite exclude each other", hint="choose one")
        keep = self.save_num_checkpoints_to_keep
        if not isinstance(keep, int) or keep == 0 or keep < -1:
            raise ConfigError(
                f"save_num_checkpoints_to_keep={keep!r} would keep no checkpoint",
                hint="give -1 to keep all, or a number from 1",
            )
        for name, obj in self.state.items():
            if not (hasattr(obj, "state_dict") and hasattr(obj, "load_state_dict")):
                raise ConfigError(
                    f"state[{name!r}] is a {type(obj).__name__} without state_dict and load_state_dict",
                    hint="give the model, optimizer or scheduler object itself",
                )
        self._check_load()
        for option in ("save_interval", "save_best"):
            if getattr(self, option) is not None and not self.state:
                raise ConfigError(
                    f"{option}={getattr(self, option)!r} without state= would save nothing",
                    hint='give state={"model": model, "optimizer": optimizer}',
                )
        self.log_every, self.save_every, self.best, self.grace_s, self.trace_template  # noqa: B018 - raise now, not later

    def _check_load(self) -> None:
        if self.load_path is None:
            if self.load_weights_only:
                raise ConfigError(
                    "load_weights_only=True without load_path: there is nothing to load",
                    hint="give load_path=, a checkpoint or the directory of a run",
                )
            return
        path = os.fspath(self.load_path) if isinstance(self.load_path, os.PathLike) else self.load_path
        if not isinstance(path, str) or not path:
            raise ConfigError(
                f"load_path={self.load_path!r} is no path", hint="give a checkpoint or the directory of a run"
            )
        if not self.state:
            raise ConfigError(
                f"load_path={str(self.load_path)!r} without state= has nothing to load into",
                hint='give state={"model": model, "optimizer": optimizer}',
            )

    @property
    def root_path(self) -> Path:
        """The folder that holds the runs, unresolved."""
        return Path(self.root if self.root is not None else os.environ.get("HARNESS_ROOT") or DEFAULT_ROOT)

    @property
    def log_every(self) -> Duration:
        """`log_interval`, parsed."""
        return Duration.parse(self.log_interval, option="log_interval", fraction=True)

    @property
    def save_every(self) -> Duration | None:
        """`save_interval`, parsed."""
        if self.save_interval is None:
            return None
        return Duration.parse(self.save_interval, option="save_interval", fraction=True)

    @property
    def grace_s(self) -> float:
        """`grace`, parsed."""
        duration = Duration.parse(self.grace, option="grace")
        if duration.unit is not DurationUnit.SECOND:
            raise ConfigError(f"grace={duration} is not a time", hint="give a time such as 25s or 2min")
        return float(duration.value)

    @property
    def best(self) -> SaveBest | None:
        """`save_best`, parsed."""
        return None if self.save_best is None else SaveBest.parse(self.save_best)

    @property
    def trace_template(self) -> Template:
        """`trace_filename`, compiled."""
        template = Template.compile(self.trace_filename, option="trace_filename")
        check_placement(template, option="trace_filename")
        if not template.text.endswith(".pt.trace.json.gz"):
            raise ConfigError(
                f"trace_filename={self.trace_filename!r} does not end in .pt.trace.json.gz",
                hint="torch-tb-profiler lists only files with that ending",
            )
        if not {"batch", "step"} & set(template.fields):
            raise ConfigError(
                f"trace_filename={self.trace_filename!r} has no {{batch}}: two windows would get one file",
                hint="put {batch:06d} into the name",
            )
        return template
