"""The keyword arguments that `harness.session` and `Trainer` share, for type checkers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from harness.capture.recipe import Recipe
    from harness.checkpoint.best import SaveBest
    from harness.loggers.base import Logger
    from harness.units import Duration


class RunKeywords(TypedDict, total=False):
    """Options of a run that `Trainer` hands on unchanged. Documented in `SessionOptions`."""

    root: str | os.PathLike[str] | None
    profile: str | os.PathLike[str] | Recipe | None
    resume: bool | Literal["auto"]
    overwrite: bool
    load_path: str | os.PathLike[str] | None
    load_weights_only: bool
    loggers: Sequence[str | Logger]
    log_interval: str | int | Duration
    save_interval: str | int | Duration | None
    save_folder: str
    save_filename: str
    save_latest_filename: str | None
    save_num_checkpoints_to_keep: int
    save_best: str | SaveBest | None
    save_weights_only: bool
    save_overwrite: bool
    save_async: bool
    on_save_error: Literal["raise", "warn"]
    trace_filename: str
    handle_signals: bool
    grace: str | Duration


class SessionKeywords(RunKeywords, total=False):
    """Options of `harness.session` beside the name. Documented in `SessionOptions`."""

    state: Mapping[str, Any]
    config: Mapping[str, object]
    device: str | None
