"""What `harness train` does: check, build, train, and show what the run's files say, however it ended."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.cli.errors import FailedRunError
from harness.cli.run_files import read_directory
from harness.cli.summary_table import next_lines, shown_path, summary_lines
from harness.cli.terminal import StdoutError, say, write_lines
from harness.errors import ConfigError, HarnessError
from harness.units import Duration, DurationUnit

if TYPE_CHECKING:
    from harness.trainer.trainer import Trainer

DEFAULT_LOGGERS = ("tensorboard", "progress")
"""Beside those that every run has."""
NONE = "none"
"""Turns an option off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest:
    """The options of `harness train`, as typed."""

    run_name: str | None
    """None has a name generated; an empty one is an error."""
    workload: str
    """A bundled workload, or the import path of a build function."""
    options: Mapping[str, str]
    """The build function's options."""
    profile: str
    """A recipe's name or file."""
    max_duration: str | None
    """None takes the workload's."""
    eval_interval: str
    """How often to evaluate."""
    save_interval: str
    """How often to save; `none` saves nothing."""
    save_num_checkpoints_to_keep: int
    """-1 keeps all."""
    save_best: str | None
    """As `METRIC:min`."""
    save_weights_only: bool
    """Save modules alone."""
    save_async: bool
    """Whether a save goes on beside the training."""
    on_save_error: Literal["raise", "warn"]
    """What to do when a checkpoint cannot be written."""
    grace: str
    """From SIGTERM to the end."""
    seed: int | None
    """None leaves the generators alone."""
    loggers: tuple[str, ...]
    """Empty for the default ones; `none` alone for none of them."""
    log_interval: str
    """How often metrics are taken."""
    root: Path
    """The folder that holds the runs."""
    resume: bool
    """Go on with the run."""
    auto_resume: bool
    """Go on with the run if there is one."""
    overwrite: bool
    """Replace the run."""
    load_path: str | None
    """What a new run starts from."""
    load_weights_only: bool
    """Whether only weights are taken from it."""
    precision: str
    """The Trainer's."""
    device: str | None
    """None takes CUDA where there is one."""


def launch(request: TrainRequest) -> None:
    """Train, then print the table of the run to stdout, also when the run failed or was interrupted.

    Raises:
        HarnessError: Nothing was trained: something that was asked for cannot work.
        FailedRunError: The training raised.
        KeyboardInterrupt: Ctrl-C ended it.
        SystemExit: SIGTERM ended it.
    """
    _check(request)
    # kineto writes two lines to stderr for each window, into the progress bar. Its errors go with them: the harness
    # looks at every trace itself.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    trainer = _build(request)
    directory = trainer.session.directory
    shown = shown_path(directory.path)
    first_step = trainer.state.timestamp.batch
    going_on = f", goes on after step {first_step}" if directory.resumed else ""
    if not trainer.session.name_is_generated:  # else the session has said it
        say(f"run {directory.run_name} in {shown}{going_on}")
    try:
        trainer.fit()
    except Exception as error:
        _show_what_there_is(trainer)
        raise FailedRunError(directory.run_name, shown) from error
    except BaseException:
        _show_what_there_is(trainer)
        raise
    try:
        _show(trainer)
    except StdoutError as error:
        say(f"{error}; the same table: harness show {directory.run_name}")  # the training is what counts
    if first_step and trainer.state.timestamp.batch == first_step:
        say("note: the run had reached its max_duration before, so nothing was trained; give a longer --max-duration")


def _check(request: TrainRequest) -> None:
    """Find plain slips now: importing torch and loading the data take seconds or minutes."""
    from harness.capture.recipe import Recipe
    from harness.checkpoint.best import SaveBest
    from harness.naming.run_name import resolve_run_name

    resolve_run_name(request.run_name, os.environ)
    Recipe.load(request.profile)
    if request.max_duration is not None:
        Duration.parse(request.max_duration, option="--max-duration")
    Duration.parse(request.eval_interval, option="--eval-interval", fraction=True)
    Duration.parse(request.log_interval, option="--log-interval", fraction=True)
    if request.save_interval != NONE:
        Duration.parse(request.save_interval, option="--save-interval", fraction=True)
    if Duration.parse(request.grace, option="--grace").unit is not DurationUnit.SECOND:
        raise ConfigError(f"--grace={request.grace} is not a time", hint="give a time such as 25s or 2min")
    keep = request.save_num_checkpoints_to_keep
    if keep < 1 and keep != -1:
        raise ConfigError(f"--keep={keep} would keep no checkpoint", hint="give a number from 1, or -1 to keep all")
    if request.save_best is not None:
        SaveBest.parse(request.save_best)
    for option, given in (("--resume", request.resume), ("--auto-resume", request.auto_resume)):
        if given and request.overwrite:
            raise ConfigError(f"{option} keeps the run and --overwrite removes it", hint="give one of the two")
    _check_load(request)
    if NONE in request.loggers and len(request.loggers) > 1:
        raise ConfigError("--logger none together with other loggers", hint="give none alone, or the others")


def _check_load(request: TrainRequest) -> None:
    if request.load_weights_only and request.load_path is None:
        raise ConfigError("--load-weights-only without --load-path: there is nothing to load", hint="give --load-path")
    if request.load_path == "":
        raise ConfigError("--load-path is empty", hint="give a checkpoint or the directory of a run")


def _build(request: TrainRequest) -> Trainer:
    from harness.trainer.setup import find_device, seed_everything
    from harness.trainer.trainer import Trainer
    from harness.workloads.load import load_workload

    device = find_device(request.device)
    if request.seed is not None:
        seed_everything(request.seed)
    workload = load_workload(request.workload, request.options)
    # Before the optimizer is made, which some models' parameters do not survive otherwise.
    workload.model.to(device)
    optimizer = workload.make_optimizer()
    return Trainer(
        workload.model,
        workload.train_dataloader,
        max_duration=request.max_duration or workload.max_duration,
        loss_fn=workload.loss_fn,
        optimizers=optimizer,
        schedulers=workload.make_scheduler(optimizer),
        eval_dataloader=workload.eval_dataloader,
        eval_interval=request.eval_interval,
        metrics=workload.metrics,
        run_name=request.run_name,
        device=device,
        precision=request.precision,
        grad_clip_norm=workload.grad_clip_norm,
        seed=request.seed,
        get_num_samples=workload.get_num_samples,
        get_num_tokens=workload.get_num_tokens,
        config={"workload": request.workload, "workload_options": dict(request.options)},
        root=request.root,
        profile=request.profile,
        resume=request.resume or ("auto" if request.auto_resume else False),
        overwrite=request.overwrite,
        load_path=request.load_path,
        load_weights_only=request.load_weights_only,
        loggers=_loggers(request.loggers),
        log_interval=request.log_interval,
        save_interval=None if request.save_interval == NONE else request.save_interval,
        save_num_checkpoints_to_keep=request.save_num_checkpoints_to_keep,
        save_best=request.save_best,
        save_weights_only=request.save_weights_only,
        save_async=request.save_async,
        on_save_error=request.on_save_error,
        grace=request.grace,
    )


def _loggers(asked: tuple[str, ...]) -> tuple[str, ...]:
    if not asked:
        return DEFAULT_LOGGERS
    return () if asked == (NONE,) else asked


def _show(trainer: Trainer) -> None:
    run = read_directory(trainer.session.directory)
    write_lines(["", *summary_lines(run), "", *next_lines(run)])


def _show_what_there_is(trainer: Trainer) -> None:
    """Show as far as there is data; nothing here hides why the run ended."""
    try:
        _show(trainer)
    except HarnessError as error:
        say(f"the run's files cannot be read: {error.message}")
    except StdoutError as error:
        say(str(error))
