"""Starting a new run from a checkpoint of another one: `load_path`, or for a resumed run the parent it has on record.

All of the checkpoint, as a resume would put it back, or the weights alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.checkpoint.position import EpochPosition
from harness.checkpoint.source import Source, inside, read_source
from harness.checkpoint.state import restore
from harness.errors import CheckpointError, ConfigError
from harness.loop.options import SessionOptions
from harness.loop.parts import Checked
from harness.loop.resume import Resumed
from harness.loop.timestamp import Timestamp
from harness.run.directory import RunDirectory
from harness.run.layout import MANIFEST_NAME
from harness.run.manifest import Parent, read_manifest

_log = logging.getLogger(__name__)
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_ALL_HINT = (
    "give the objects of the run it comes from, or load_weights_only=True (--load-weights-only) for the weights alone"
)
_WEIGHTS_HINT = "build the model as in the run it comes from, or load another checkpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A checkpoint of another run that was put into this one's objects."""

    parent: Parent
    """For the manifest."""
    resumed: Resumed | None
    """What is still to be put back: random numbers and the place in the data. None where weights were all."""


def describe(parent: Parent) -> str:
    """What was loaded, as the end of a sentence."""
    what = "the weights" if parent.weights_only else "all"
    if parent.run_name is None:
        return f"{what} of {parent.path}"
    return f"{what} of run {parent.run_name!r} after step {parent.step}, {parent.path}"


def load_before_claim(options: SessionOptions, checked: Checked, timestamp: Timestamp) -> Loaded | None:
    """Load `load_path` for a run that is not there yet, so that what cannot be loaded leaves no directory behind.

    Returns:
        None without `load_path`, and for a run that is there.

    Raises:
        ConfigError: There is nothing at the path, or it is this run.
        CheckpointError: It cannot be loaded, or not into these objects.
    """
    if options.load_path is None or options.resume is True:
        return None
    path, name = Path(options.load_path), checked.name.name
    if name is not None:
        run = options.root_path / name
        if inside(path, run) and not options.resume:
            raise ConfigError(
                f"load_path={str(path)!r} is the run {name!r} itself",
                hint="go on with it (--resume, resume=True), or give the new run another name",
            )
        if (run / MANIFEST_NAME).exists() and not options.overwrite:
            return None  # it is gone on with, or the claim refuses: either way nothing may be touched before
    loaded = _load(path, options, timestamp, rank=checked.ranks.rank, weights_only=options.load_weights_only)
    _log.info("loaded %s", describe(loaded.parent))
    return loaded


def load_again(
    options: SessionOptions, checked: Checked, directory: RunDirectory, timestamp: Timestamp
) -> Loaded | None:
    """Load what a run starts from that is resumed before it has a checkpoint: `load_path`, else the parent in its
    `run.json`. Says where it starts.

    Raises:
        ConfigError: There is nothing at the path.
        CheckpointError: It cannot be loaded, is another file than the first time, or does not fit these objects.
    """
    rank, loaded = checked.ranks.rank, None
    if options.load_path is not None:
        path = Path(options.load_path)
        loaded = _load(path, options, timestamp, rank=rank, weights_only=options.load_weights_only)
    else:
        parent = read_manifest(directory.manifest_path).parent
        if parent is not None:
            loaded = _load_parent(parent, options, timestamp, rank=rank)
    _log.warning(
        "run %r has no checkpoint to go on from: it starts again at step %d%s",
        directory.run_name,
        timestamp.batch + 1,
        "" if loaded is None else f" with {describe(loaded.parent)}",
    )
    return loaded


def _load_parent(parent: Parent, options: SessionOptions, timestamp: Timestamp, *, rank: int) -> Loaded:
    try:
        source = read_source(Path(parent.path), rank=rank)
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(
            f"the run has no checkpoint of its own yet, and what it was started from cannot be loaded: {error.message}",
            hint="give --load-path (load_path=), or start it again with --overwrite (overwrite=True)",
        ) from error
    if source.crc32c != parent.crc32c:
        raise CheckpointError(
            f"the run was started from {parent.path}, whose content has changed since: checksum {source.crc32c},"
            f" then {parent.crc32c}",
            hint="give --load-path (load_path=), or start it again with --overwrite (overwrite=True)",
        )
    return _put(source, options.state, timestamp, rank=rank, weights_only=parent.weights_only)


def _load(path: Path, options: SessionOptions, timestamp: Timestamp, *, rank: int, weights_only: bool) -> Loaded:
    return _put(read_source(path, rank=rank), options.state, timestamp, rank=rank, weights_only=weights_only)


def _put(source: Source, state: Mapping[str, Any], timestamp: Timestamp, *, rank: int, weights_only: bool) -> Loaded:
    parent = Parent(
        run_name=source.run_name,
        path=str(source.path),
        step=source.step,
        crc32c=source.crc32c,
        weights_only=weights_only,
    )
    if weights_only:
        _put_weights(source, state)
        return Loaded(parent=parent, resumed=None)
    if source.holds_weights_only:
        raise CheckpointError(
            f"{source.path} holds weights only: optimizer, counts and random numbers are not in it",
            hint="load the weights with load_weights_only=True (--load-weights-only)",
        )
    if source.content["rank"] != rank:
        raise CheckpointError(f"{source.path} is of rank {source.content['rank']}, and this is rank {rank}")
    resumed = Resumed(source.content, EpochPosition.from_state(source.content["position"]))
    _check_numbers(source, source.content["state"], _modules(state))
    restore(source.content["state"], state, hint=_ALL_HINT)
    timestamp.load_state_dict(source.content["timestamp"])
    return Loaded(parent=parent, resumed=resumed)


def _put_weights(source: Source, state: Mapping[str, Any]) -> None:
    modules = _modules(state)
    if not modules:
        raise ConfigError(
            f"load_weights_only=True, and state= has no torch.nn.Module, only {', '.join(state)}",
            hint="put the model itself into state=",
        )
    if source.is_bare:
        name = _owner(source, modules)
        modules = {name: modules[name]}
        saved = {name: source.content["state"]}
    else:
        saved = source.content["state"]
        _check_names(source, modules, state)
    weights = {name: saved[name] for name in modules}
    _check_numbers(source, weights, modules)
    restore(weights, modules, hint=_WEIGHTS_HINT)


def _owner(source: Source, modules: Mapping[str, nn.Module]) -> str:
    """The name of the module that a plain state_dict is for."""
    if "model" in modules:
        return "model"
    if len(modules) > 1:
        raise CheckpointError(
            f"{source.path} is the state_dict of one module, and this run has several: {', '.join(modules)}",
            hint="call the one it belongs to 'model' in state=",
        )
    return next(iter(modules))


def _check_names(source: Source, modules: Mapping[str, nn.Module], state: Mapping[str, Any]) -> None:
    saved = source.content["state"]
    # Of what a whole checkpoint holds, only modules' entries carry torch's version numbers.
    saved_modules = [name for name, entry in saved.items() if source.holds_weights_only or hasattr(entry, "_metadata")]
    missing, unexpected = sorted(set(modules) - set(saved)), sorted(set(saved_modules) - set(state))
    if missing or unexpected:
        raise CheckpointError(
            f"{source.path} does not hold the weights of this run's modules: missing in it:"
            f" {', '.join(missing) or 'none'}; in it but not in this run: {', '.join(unexpected) or 'none'}",
            hint="give the modules the names they had; or save one's weights as a file of their own:"
            " torch.save(torch.load(path, weights_only=True)['state'][name], 'weights.pt')",
        )


def _modules(state: Mapping[str, Any]) -> dict[str, nn.Module]:
    return {name: obj for name, obj in state.items() if isinstance(obj, nn.Module)}


def _check_numbers(source: Source, saved: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> None:
    """Refuse weights that are NaN: every loss after them would be. Buffers may be what they like."""
    for name, module in modules.items():
        weights = saved.get(name)
        if not isinstance(weights, Mapping):
            continue
        for key, _ in module.named_parameters():
            value = weights.get(key)
            if isinstance(value, torch.Tensor) and value.dtype in _FLOATS and bool(value.isnan().any()):
                raise CheckpointError(
                    f"{source.path} has NaN in {key!r} of state[{name!r}]: nothing can be trained from it",
                    hint="give a checkpoint from before the loss became NaN",
                )
