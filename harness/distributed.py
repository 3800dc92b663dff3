"""Who this process is among the processes of a run, as torchrun tells it.

Read from environment variables, so that it is known before torch is imported and without a process group.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import ConfigError

_NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_NODE_RANK = ("GROUP_RANK", "NODE_RANK")  # torchrun's word, then the one other launchers use
_HINT = "start the run with torchrun, which sets them all, or unset them to train in one process"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankFacts:
    """Ranks and sizes of one process, in torch.distributed's words.

    Example:
        >>> RankFacts.from_environ({})
        RankFacts(rank=0, local_rank=0, node_rank=0, world_size=1, local_world_size=1)

    Raises:
        ConfigError: The numbers contradict each other.
    """

    rank: int = 0
    """Number of this process among all, from 0."""
    local_rank: int = 0
    """Number of this process on its machine, from 0."""
    node_rank: int = 0
    """Number of the machine, from 0."""
    world_size: int = 1
    """How many processes the run has."""
    local_world_size: int = 1
    """How many of them are on this machine."""

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise _contradiction("RANK", self.rank, "WORLD_SIZE", self.world_size)
        if not 1 <= self.local_world_size <= self.world_size:
            raise _contradiction("LOCAL_WORLD_SIZE", self.local_world_size, "WORLD_SIZE", self.world_size)
        if not 0 <= self.local_rank < self.local_world_size:
            raise _contradiction("LOCAL_RANK", self.local_rank, "LOCAL_WORLD_SIZE", self.local_world_size)
        if self.local_rank > self.rank:
            raise _contradiction("LOCAL_RANK", self.local_rank, "RANK", self.rank)
        # each machine has one process at least
        if not 0 <= self.node_rank <= self.world_size - self.local_world_size:
            raise _contradiction("GROUP_RANK", self.node_rank, "WORLD_SIZE", self.world_size)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> RankFacts:
        """Read torchrun's variables. None of them set means one process.

        Raises:
            ConfigError: Some are set and others not, one is no whole number, or they contradict each other.
        """
        given = [name for name in _NEEDED if name in environ]
        if not given:
            return cls()
        missing = [name for name in _NEEDED if name not in environ]
        if missing:
            raise ConfigError(f"the environment has {', '.join(given)} but not {', '.join(missing)}", hint=_HINT)
        numbers = {name: _number(environ, name) for name in _NEEDED}
        return cls(
            rank=numbers["RANK"],
            local_rank=numbers["LOCAL_RANK"],
            node_rank=_node_rank(environ, numbers["WORLD_SIZE"], numbers["LOCAL_WORLD_SIZE"]),
            world_size=numbers["WORLD_SIZE"],
            local_world_size=numbers["LOCAL_WORLD_SIZE"],
        )


def _node_rank(environ: Mapping[str, str], world_size: int, local_world_size: int) -> int:
    for name in _NODE_RANK:
        if name in environ:
            return _number(environ, name)
    if world_size == local_world_size:
        return 0
    raise ConfigError(
        f"WORLD_SIZE={world_size} is more than LOCAL_WORLD_SIZE={local_world_size}, so there are several"
        f" machines, but neither {' nor '.join(_NODE_RANK)} says which this is",
        hint=_HINT,
    )


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ[name]
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{name}={text!r} in the environment is no whole number from 0", hint=_HINT)
    return int(text)


def _contradiction(name: str, value: int, other_name: str, other: int) -> ConfigError:
    return ConfigError(f"{name}={value} does not fit {other_name}={other}", hint=_HINT)
