"""The states of random number generators, as something `torch.load(weights_only=True)` reads back.

Python and numpy keep their states in tuples and arrays that a weights-only file may not hold; here they
become tensors and plain numbers, and return exactly as they were.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from harness.errors import CheckpointError

_log = logging.getLogger(__name__)

Generator: TypeAlias = torch.Generator | random.Random | np.random.Generator | np.random.RandomState
"""A generator that somebody owns, unlike the global ones."""


def collect_rng() -> dict[str, Any]:
    """The states of the global generators: python's, numpy's, torch's, and CUDA's where CUDA is in use.

    Takes about 0.1 ms and does not synchronise the device.

    Returns:
        Tensors on the CPU and plain types only. `cuda` has one entry per device, none if CUDA was not used
        yet.
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return {
        "python": _pack_python(random.getstate()),
        "numpy": _pack(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put the global generators back into the states that `collect_rng` took.

    A GPU's state that finds no GPU here is left out with a warning.

    Raises:
        CheckpointError: The state is not one of `collect_rng`, or of another numpy.
    """
    try:
        random.setstate(_unpack_python(state["python"]))
        np.random.set_state(_unpack(state["numpy"]))
        torch.set_rng_state(state["torch"])
        _restore_cuda(state["cuda"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's random number states do not fit: {error!r}") from error


def _restore_cuda(states: list[torch.Tensor]) -> None:
    # asked only when there is something to restore: device_count() is not free on a machine with GPUs
    num_devices = torch.cuda.device_count() if states else 0
    for device, cuda_state in enumerate(states[:num_devices]):
        torch.cuda.set_rng_state(cuda_state, device)
    if len(states) != num_devices:
        _log.warning(
            "the checkpoint has random number states of %d GPUs and this process sees %d: what is drawn on a"
            " GPU will differ from an uninterrupted run",
            len(states),
            num_devices,
        )


def generator_state(generator: Generator) -> dict[str, Any]:
    """The state of a generator of its own, with the name of its type."""
    state: Any
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
    elif isinstance(generator, random.Random):
        state = _pack_python(generator.getstate())
    elif isinstance(generator, np.random.Generator):
        state = _pack(generator.bit_generator.state)
    else:
        state = _pack(generator.get_state(legacy=False))
    return {"type": type(generator).__name__, "state": state}


def restore_generator(generator: Generator, saved: Mapping[str, Any], name: str) -> None:
    """Put a generator back into a state that `generator_state` took.

    Raises:
        CheckpointError: The state is of another kind of generator; the message has `name`.
    """
    if saved["type"] != type(generator).__name__:
        raise CheckpointError(
            f"{name} is a {type(generator).__name__} and was a {saved['type']} when the checkpoint was saved",
            hint="give the dataloader the generator it had",
        )
    state = saved["state"]
    try:
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, random.Random):
            generator.setstate(_unpack_python(state))
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = _unpack(state)
        else:
            generator.set_state(_unpack(state))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's state of {name} does not fit: {error!r}") from error


def _pack_python(state: tuple[Any, ...]) -> dict[str, Any]:
    version, words, gauss = state
    return {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss}


def _unpack_python(state: Mapping[str, Any]) -> tuple[Any, ...]:
    return state["version"], tuple(state["words"].tolist()), state["gauss"]


def _pack(value: Any) -> Any:
    """Numpy's nested state with arrays as tensors of the same dtype."""
    if isinstance(value, Mapping):
        return {key: _pack(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value.item() if isinstance(value, np.generic) else value


def _unpack(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _unpack(entry) for key, entry in value.items()}
    return value.numpy().copy() if isinstance(value, torch.Tensor) else value
