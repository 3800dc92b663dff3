"""The weights of a checkpoint as a file of their own, for programs that know nothing of the harness."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.checkpoint.state import cause
from harness.errors import CheckpointError, MissingExtraError
from harness.run.durable import commit, temporary_path

SAFETENSORS = ".safetensors"
PLAIN = ".pt"
ENDINGS = (SAFETENSORS, PLAIN)
"""The endings of a file's name that say what is written."""

_VERSIONS = "_metadata"
"""What torch adds to a state dict that comes from a module: others may hold nothing but tensors, too."""


def check_exporter(path: Path) -> None:
    """See that the package that writes such a file is there, before anything large is read.

    Raises:
        MissingExtraError: It is not.
    """
    if path.suffix == SAFETENSORS:
        try:
            import safetensors.torch  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(
                f"writing {path.name} needs the package safetensors",
                hint='pip install "profiling-harness[safetensors]", or export to a name that ends in .pt',
            ) from error


def module_weights(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The state dicts of the modules of a checkpoint as one, with the tensors of the checkpoint.

    Those of several modules get the module's name before theirs, as in `generator.0.weight`; those of a single one
    keep their own.

    Args:
        saved: `state` of a checkpoint.

    Raises:
        CheckpointError: None of the objects is a module.
    """
    modules = {name: state for name, state in saved.items() if _is_module(state)}
    if any(hasattr(state, _VERSIONS) for state in modules.values()):
        modules = {name: state for name, state in modules.items() if hasattr(state, _VERSIONS)}
    if not modules:
        raise CheckpointError(
            f"the checkpoint holds no module's weights, only {', '.join(map(repr, saved)) or 'nothing'}",
            hint='give the module to state=, as in state={"model": model}',
        )
    if len(modules) == 1:
        return dict(next(iter(modules.values())))
    return {f"{name}.{key}": value for name, state in modules.items() for key, value in state.items()}


def write_weights(path: Path, weights: Mapping[str, Any], metadata: Mapping[str, str]) -> list[str]:
    """Write weights in one step: `.safetensors` with tensors and metadata, `.pt` as a state dict by torch.save.

    Of tied weights each name gets the values, in `.safetensors` as copies of their own.

    Args:
        path: The file; one that is there is replaced. Its folder must exist.
        weights: From `module_weights`.
        metadata: Goes into the header of a `.safetensors` file.

    Returns:
        The names that could not be written, because they are no tensors (`.safetensors` holds nothing else).

    Raises:
        CheckpointError: The disk or the format refused; what was there is as it was.
    """
    tensors = {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    final = path.parent.resolve() / path.name
    tmp = temporary_path(final)
    try:
        if path.suffix == SAFETENSORS:
            from safetensors.torch import save_file

            save_file(_untied(tensors), tmp, metadata=dict(metadata))
        else:
            torch.save(dict(weights), tmp)
        commit(tmp, final)
    except Exception as error:
        # both libraries tell a full disk and a tensor they do not take in many error types
        raise CheckpointError(f"the weights could not be written to {path}: {cause(error)}") from error
    finally:
        with contextlib.suppress(OSError):  # gone after the rename
            tmp.unlink()
    return [] if path.suffix == PLAIN else [name for name in weights if name not in tensors]


def _is_module(state: object) -> bool:
    """Whether this is the state dict of a module, with at least one tensor: optimizers and the like nest theirs."""
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        return False
    extra = {key for key in state if key.rpartition(".")[2] == "_extra_state"}
    tensors = [isinstance(value, torch.Tensor) for key, value in state.items() if key not in extra]
    return bool(tensors) and all(tensors)


def _untied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, contiguous, none sharing memory with another: the format has no word for that."""
    own: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach()
        if whole.layout is torch.strided:
            whole = whole.contiguous()
            place = whole.untyped_storage().data_ptr()
            if place in seen or whole.untyped_storage().nbytes() > whole.nbytes:
                whole = whole.clone()
            seen.add(whole.untyped_storage().data_ptr())
        own[name] = whole
    return own
