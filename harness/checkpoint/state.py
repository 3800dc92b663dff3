"""What a checkpoint holds, and how it goes back into the objects it came from.

One dict of tensors and plain types, so that a load never runs code from the file:

    {"format": 1, "run_name": "foo", "rank": 0, "attempt": 1,
     "timestamp": {"epoch": 1, "batch": 57, …}, "state": {"model": {…}, "optimizer": {…}},
     "rng": {…}, "position": {…}, "config": {…}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from harness.checkpoint.rng import collect_rng, restore_rng
from harness.errors import CheckpointError

__all__ = [
    "FORMAT",
    "WEIGHTS_ONLY",
    "Stateful",
    "build_state",
    "check_state",
    "collect_rng",
    "gather",
    "restore",
    "restore_rng",
    "weights",
]

FORMAT = 1
"""Version of the layout above. A file with a higher one was made by a newer harness and is not guessed at."""
WEIGHTS_ONLY = "weights_only"
"""The entry, True, of a checkpoint that holds modules alone, so that no run can go on from it."""
_CAUSE_LENGTH = 400
_RESUME_HINT = "resume with the objects and options the run was started with, or start a new run under another name"
_ENTRIES: dict[str, type] = {
    "run_name": str,
    "rank": int,
    "attempt": int,
    "timestamp": dict,
    "state": dict,
    "rng": dict,
    "position": dict,
}


class Stateful(Protocol):
    """What can be saved: modules, optimizers, schedulers, scalers, callbacks."""

    def state_dict(self) -> Any:
        """All that is needed to go on, as tensors and plain types."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Go on from what `state_dict` returned."""
        ...


class NewerFormatError(CheckpointError):
    """A newer version of the harness made this checkpoint: whether it is good cannot be told."""


def gather(stateful: Mapping[str, Stateful]) -> dict[str, Any]:
    """The state dicts of all objects, by name. Tensors are the live ones, not copies."""
    return {name: obj.state_dict() for name, obj in stateful.items()}


def weights(stateful: Mapping[str, Stateful]) -> dict[str, Any]:
    """The state dicts of the modules among the objects, by name."""
    return gather({name: obj for name, obj in stateful.items() if isinstance(obj, nn.Module)})


def restore(saved: Mapping[str, Any], stateful: Mapping[str, Stateful], *, hint: str = _RESUME_HINT) -> None:
    """Load each object's saved state into it.

    Names are compared first: when they differ nothing has been touched.

    Args:
        saved: From `gather`.
        stateful: The objects, by the same names.
        hint: What to do when they do not fit each other.

    Raises:
        CheckpointError: Names are missing or unexpected (the message lists both), or an object does not take
            its state, such as a model of another architecture.
    """
    missing = sorted(set(stateful) - set(saved))
    unexpected = sorted(set(saved) - set(stateful))
    if missing or unexpected:
        raise CheckpointError(
            "the checkpoint does not hold the state of this run's objects:"
            f" missing in the checkpoint: {', '.join(missing) or 'none'};"
            f" in the checkpoint but not in this run: {', '.join(unexpected) or 'none'}",
            hint=hint,
        )
    for name, obj in stateful.items():
        try:
            obj.load_state_dict(saved[name])
        except Exception as error:
            raise CheckpointError(
                f"state[{name!r}] ({type(obj).__name__}) does not take its saved state: {cause(error)}",
                hint=hint,
            ) from error


def build_state(
    *,
    run_name: str,
    rank: int,
    attempt: int,
    timestamp: Mapping[str, int],
    state: Mapping[str, Any],
    position: Mapping[str, Any],
    rng: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint holds, in its layout. `CheckpointWriter.save` checks that all of it can be loaded
    again.

    Args:
        run_name: The run it belongs to.
        rank: The rank it belongs to.
        attempt: The attempt that saved it.
        timestamp: Counts; `batch` is the step it was saved after.
        state: From `gather`.
        position: From `EpochPosition.to_state`.
        rng: From `collect_rng`; None collects it now.
        config: The resolved options, for people.
    """
    return {
        "format": FORMAT,
        "run_name": run_name,
        "rank": rank,
        "attempt": attempt,
        "timestamp": dict(timestamp),
        "state": dict(state),
        "rng": dict(collect_rng() if rng is None else rng),
        "position": dict(position),
        "config": dict(config or {}),
    }


def check_state(loaded: object, name: str, *, run_name: str | None = None, rank: int | None = None) -> dict[str, Any]:
    """See that what was loaded is a checkpoint of this layout, of this run and of this rank.

    Args:
        loaded: What torch.load returned.
        name: The file, for the error.
        run_name: The run it must belong to; None takes any.
        rank: The rank it must belong to; None takes any.

    Raises:
        CheckpointError: It is none, or of another run or rank.
        NewerFormatError: A newer harness made it.
    """
    if not isinstance(loaded, dict) or not isinstance(loaded.get("format"), int):
        raise CheckpointError(f"{name} is no checkpoint of this harness: it has no format number")
    if loaded["format"] > FORMAT:
        raise NewerFormatError(
            f"{name} has format {loaded['format']}, and this version of the harness reads up to {FORMAT}",
            hint="install the version of profiling-harness that made it, or a newer one",
        )
    wrong = [key for key, kind in _ENTRIES.items() if not isinstance(loaded.get(key), kind)]
    if not wrong and not isinstance(loaded["timestamp"].get("batch"), int):
        wrong = ["timestamp.batch"]
    if wrong:
        raise CheckpointError(f"{name} is no complete checkpoint: {', '.join(wrong)} missing or of a wrong type")
    for key, expected in (("run_name", run_name), ("rank", rank)):
        if expected is not None and loaded[key] != expected:
            raise CheckpointError(f"{name} belongs to {key} {loaded[key]!r}, not {expected!r}")
    return loaded


def cause(error: BaseException) -> str:
    """An error of torch or of a user's object as one line that is short enough to read."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _CAUSE_LENGTH else text[: _CAUSE_LENGTH - 2] + " …"
