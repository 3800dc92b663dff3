"""`harness checkpoints NAME --export FILE`: the weights of a checkpoint for other programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness.checkpoint.export import check_exporter, module_weights, write_weights
from harness.checkpoint.find import load_checkpoint
from harness.checkpoint.inventory import CheckpointFile, RankFolder, State, find_folders, list_files
from harness.checkpoint.verify import verify_file
from harness.cli.run_files import find_run
from harness.cli.terminal import say, write_json, write_lines
from harness.errors import CheckpointError, ConfigError
from harness.run.directory import RunDirectory
from harness.units import format_bytes

_LOOKS = 20
"""How often a run that rotates its checkpoints away is looked at anew."""
_SHOWN_STEPS = 10


def export_weights(root: Path, run_name: str, path: Path, *, step: int | None, overwrite: bool, as_json: bool) -> None:
    """Write the weights of a run's newest checkpoint that verifies, or of the one of `step`, to a file.

    Of a run of several ranks it is the lowest one's. The run may be going on.

    Raises:
        MissingExtraError: safetensors is not installed.
        ConfigError: The file is there, cannot be made, or would lie among the checkpoints.
        RunDirError: There is no such run.
        CheckpointError: There is no such checkpoint, it is damaged, or the weights cannot be written.
    """
    check_exporter(path)
    _check_target(path, overwrite)
    directory, manifest = find_run(root, run_name)
    folders = find_folders(directory, manifest)
    folders = [folder for folder in folders if folder.rank == min(folder.rank for folder in folders)]
    if path.parent.resolve() in {folder.path for folder in folders}:
        raise ConfigError(f"--export={path} would lie among the checkpoints of {run_name}", hint="give another folder")
    source, loaded = _load(directory, folders, step)
    saved_step = loaded["timestamp"]["batch"]
    weights = module_weights(loaded["state"])
    left_out = write_weights(path, weights, {"format": "pt", "run_name": run_name, "step": str(saved_step)})
    for name in left_out:
        say(f"warning: {name} is no tensor and is not in {path}; a file that ends in .pt holds it, too")
    if as_json:
        document = {"run_name": run_name, "checkpoint": directory.relative(source), "step": saved_step}
        write_json({**document, "path": str(path), "names": len(weights) - len(left_out), "left_out": left_out})
    else:
        size = format_bytes(path.stat().st_size)
        write_lines([f"{path}: weights after step {saved_step} ({size}), from {directory.relative(source)}"])


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"--export={path} cannot be written: there is no folder {path.parent}", hint="make it first")
    if path.is_dir():
        raise ConfigError(f"--export={path} is a folder", hint="give the name of a file")
    if os.path.lexists(path) and not overwrite:
        raise ConfigError(f"--export={path} is there already", hint="replace it with --overwrite, or give another name")


def _load(directory: RunDirectory, folders: list[RankFolder], step: int | None) -> tuple[Path, dict[str, Any]]:
    """The checkpoint's file and content."""
    for _ in range(_LOOKS):
        chosen = _choose(directory, folders, step)
        if chosen is None:
            continue
        folder, file = chosen
        source = folder.path / file.name
        try:
            return source, load_checkpoint(source, run_name=folder.run_name, rank=folder.rank)
        except CheckpointError:
            if source.exists():
                raise
    raise CheckpointError(
        f"the checkpoints of {directory.run_name} are removed faster than they can be read",
        hint="wait for the run to end, or let it keep more with save_num_checkpoints_to_keep",
    )


def _choose(
    directory: RunDirectory, folders: list[RankFolder], step: int | None
) -> tuple[RankFolder, CheckpointFile] | None:
    """The newest that verifies, those that do not named and passed over; None if it vanished meanwhile."""
    there = [
        (folder, file)
        for folder in folders
        for file in list_files(folder, directory.is_alive)
        if file.state is not State.GONE
    ]
    there.sort(key=lambda pair: pair[1].order, reverse=True)
    wanted = [pair for pair in there if step is None or pair[1].step == step]
    if not wanted:
        raise _no_such(directory.run_name, step, [file for _, file in there])
    for folder, file in wanted:
        found = verify_file(folder, file)
        if found is None:
            return None
        if found.state is State.VERIFIED:
            return folder, found
        say(f"warning: {directory.relative(folder.path / file.name)} is passed over: it {found.reason}")
    raise CheckpointError(
        f"no checkpoint of {directory.run_name}{_of_step(step)} verifies, so nothing is exported",
        hint=f"harness checkpoints {directory.run_name} --verify shows what there is",
    )


def _no_such(run_name: str, step: int | None, there: list[CheckpointFile]) -> CheckpointError:
    steps = sorted({file.step for file in there if file.step is not None}, reverse=True)
    shown = ", ".join(map(str, steps[:_SHOWN_STEPS])) + (", …" if len(steps) > _SHOWN_STEPS else "")
    hint = f"there are those of the steps {shown}" if steps else "train it with checkpoints first"
    return CheckpointError(f"run {run_name!r} has no checkpoint{_of_step(step)}", hint=hint)


def _of_step(step: int | None) -> str:
    return "" if step is None else f" of step {step}"
