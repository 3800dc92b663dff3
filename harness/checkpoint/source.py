"""Reads the checkpoint that a new run starts from: a file or a run that somebody named.

The path comes from outside, so nothing about it is taken for granted: what it points to, whether its bytes are those
that were saved, and what it holds are looked at before anything of it is used. Nothing is written.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.checkpoint.checksum import file_fault, read_crc32c
from harness.checkpoint.find import load_plain
from harness.checkpoint.index import IndexEntry, read_index
from harness.checkpoint.origin import newest_of_run
from harness.checkpoint.state import WEIGHTS_ONLY, check_state
from harness.errors import CheckpointError, ConfigError, RunNameError
from harness.naming.run_name import validate_run_name
from harness.run.layout import MANIFEST_NAME

_OPTION = "load_path"
_INDEXES = "checkpoints-rank*.json"
_SAFE_TORCH = "2.10"
_SHOWN_KEYS = 5
_LOOKS = 20
"""How often a run is looked at that removes what was found in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A checkpoint that was read and found good."""

    path: Path
    """The file, absolute and without links."""
    crc32c: str
    """Checksum of its bytes, eight hexadecimal digits."""
    content: Mapping[str, Any]
    """As `harness.checkpoint.state` lays it out; only `state` for one without a run."""
    run_name: str | None
    """The run that saved it; None for a plain `state_dict` from elsewhere."""
    step: int | None
    """The step it was saved after; None for a plain `state_dict`."""

    @property
    def is_bare(self) -> bool:
        """Whether it is a plain `state_dict`; `content["state"]` is then that of one module, without a name."""
        return self.run_name is None

    @property
    def holds_weights_only(self) -> bool:
        """Whether modules are all it has, by its own word."""
        return self.is_bare or bool(self.content.get(WEIGHTS_ONLY))


def read_source(path: Path, *, rank: int = 0) -> Source:
    """Find, verify and read what a path names. No code in the file is run, whatever it holds.

    Args:
        path: A checkpoint file, a link to one, a plain `state_dict` that torch.save wrote, or the directory of a run,
            of which the newest checkpoint that verifies is taken.
        rank: Whose checkpoint of a run.

    Raises:
        ConfigError: There is nothing to load at this path.
        CheckpointError: It is damaged (the message names an older one that is good), cannot be loaded, or is no
            checkpoint; or this version of torch is not safe for it.
        NewerFormatError: A newer version of the harness made it.
        RunDirError: The run's `run.json` cannot be read.
    """
    _check_torch()
    found = _resolve(path)
    if not found.is_dir():
        return _read_file(found)
    if not (found / MANIFEST_NAME).is_file():
        raise _no_run(path, found)
    return _read_newest(found, rank)


def _read_newest(directory: Path, rank: int) -> Source:
    for _ in range(_LOOKS):
        newest = newest_of_run(directory, rank=rank)
        if newest is None:
            continue
        try:
            return _read_file(newest)
        except CheckpointError:
            if newest.exists():
                raise
    raise CheckpointError(
        f"the run in {directory} is going on, and removes its checkpoints before they are read",
        hint="wait until it has ended, or let it keep more of them (save_num_checkpoints_to_keep)",
    )


def inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, or is it, links followed. What is not there lies nowhere."""
    try:
        return path.resolve(strict=True).is_relative_to(folder.resolve(strict=True))
    except (OSError, RuntimeError, ValueError):
        return False


def _check_torch() -> None:
    version = torch.__version__
    if version < _SAFE_TORCH:
        raise CheckpointError(
            f"{_OPTION} needs torch 2.10 or later, and this is {version}: before 2.10 a prepared file could corrupt"
            " memory even with weights_only=True (CVE-2026-24747)",
            hint="pip install 'torch>=2.10'",
        )


def _resolve(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # a link that leads to itself, a NUL in the name
        if isinstance(error, FileNotFoundError):
            raise _missing(path) from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"{_OPTION}={str(path)!r} cannot be used: {reason}", hint="give a checkpoint or the directory of a run"
        ) from error


def _missing(path: Path) -> ConfigError:
    if path.is_symlink():
        return ConfigError(
            f"{_OPTION}={str(path)!r} is a link to {os.readlink(path)!r}, which is not there",  # noqa: PTH115 - text
            hint="give a checkpoint beside it, or the directory of the run, whose newest good one is then found",
        )
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = sorted(one.name for one in path.parent.iterdir())
    near = [str(path.with_name(name)) for name in difflib.get_close_matches(path.name, names, n=3)]
    return ConfigError(
        f"{_OPTION}={str(path)!r} is not there",
        hint=f"did you mean {', '.join(near)}?" if near else "give a checkpoint or the directory of a run",
    )


def _no_run(path: Path, found: Path) -> ConfigError:
    """The error for a folder; says which run it belongs to, or which runs are in it."""
    hint = "give a checkpoint or the directory of a run, such as runs/foo"
    above = next((folder for folder in found.parents if (folder / MANIFEST_NAME).is_file()), None)
    runs = sorted(one.parent.name for one in found.glob(f"*/{MANIFEST_NAME}"))
    if above is not None:
        hint = f"give the directory of the run, {shlex.quote(str(above))}, or a checkpoint in it"
    elif runs:
        hint = f"give one of the runs in it: {', '.join(str(path / name) for name in runs[:_SHOWN_KEYS])}"
    return ConfigError(f"{_OPTION}={str(path)!r} is a folder and no run: it has no {MANIFEST_NAME}", hint=hint)


def _read_file(path: Path) -> Source:
    indexes = _indexes_beside(path)
    entry = next((index[path.name] for index in indexes if path.name in index), None)
    if entry is not None:
        fault = file_fault(path, entry)
        if fault is not None:
            raise CheckpointError(f"{path} is not loaded: it {fault}", hint=_older(path, indexes, below=entry.step))
    try:
        loaded = load_plain(path)
    except CheckpointError as error:
        hint = _older(path, indexes, below=None) if indexes else _how_to_convert(error)
        raise CheckpointError(f"{path} is not loaded: {error.message}", hint=hint) from error
    crc32c = _checksum(path) if entry is None else entry.crc32c
    if isinstance(loaded, dict) and isinstance(loaded.get("format"), int):
        content = check_state(loaded, path.name)
        step = content["timestamp"]["batch"]
        try:
            validate_run_name(content["run_name"])  # it is shown to people later
        except RunNameError as error:
            raise CheckpointError(f"{path} is not loaded: no run of the harness saved it: {error.message}") from error
        return Source(path=path, crc32c=crc32c, content=content, run_name=content["run_name"], step=step)
    if not is_state_dict(loaded):
        raise _no_checkpoint(path, loaded)
    return Source(path=path, crc32c=crc32c, content={"state": loaded}, run_name=None, step=None)


def is_state_dict(obj: object) -> bool:
    """Whether something is what a module's `state_dict` returns: tensors by name, and extra states."""
    return (
        isinstance(obj, dict)
        and bool(obj)
        and all(
            isinstance(name, str) and (isinstance(value, torch.Tensor) or name.endswith("_extra_state"))
            for name, value in obj.items()
        )
    )


def _no_checkpoint(path: Path, loaded: object) -> CheckpointError:
    holds, hint = f"a {type(loaded).__name__}", "give a checkpoint of the harness, or a model's state_dict"
    if isinstance(loaded, dict):
        keys = [repr(key) for key in loaded]
        holds = f"a dict with the keys {', '.join(keys[:_SHOWN_KEYS])}{', …' if len(keys) > _SHOWN_KEYS else ''}"
        inner = next((key for key, value in loaded.items() if is_state_dict(value)), None)
        if inner is not None:
            hint = f"save what is in it as a file of its own: torch.save(loaded[{inner!r}], 'weights.pt')"
    return CheckpointError(
        f"{path} is neither a checkpoint of the harness nor a state_dict of tensors: it is {holds}", hint=hint
    )


def _how_to_convert(error: CheckpointError) -> str:
    if "zip" in error.message:  # torch before 1.6 wrote bare pickles
        return (
            "was it written by a torch before 1.6, or with _use_new_zipfile_serialization=False? Then save it again:"
            " torch.save(torch.load(path, weights_only=True), new_path)"
        )
    return error.hint or "give a checkpoint of the harness, or a file of model.state_dict() that torch.save wrote"


def _checksum(path: Path) -> str:
    try:
        with path.open("rb", buffering=0) as file:
            return read_crc32c(file.fileno())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _indexes_beside(path: Path) -> list[dict[str, IndexEntry]]:
    """The side manifests in a file's folder, one for each rank."""
    return [read_index(index_path) for index_path in sorted(path.parent.glob(_INDEXES))]


def _older(path: Path, indexes: list[dict[str, IndexEntry]], *, below: int | None) -> str:
    """Says which older checkpoint in the folder is good."""
    entries = [
        (entry.step, name, entry)
        for index in indexes
        for name, entry in index.items()
        if name != path.name and (below is None or entry.step < below)
    ]
    for step, name, entry in sorted(entries, key=lambda one: one[:2], reverse=True):
        older = path.with_name(name)
        if file_fault(older, entry) is None:
            return f"{older}, saved after step {step}, is good: give that"
    return "no older checkpoint in its folder is good either"
