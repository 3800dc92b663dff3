"""What can be told about a dataloader from outside: its samplers, generators and workers.

Works on any iterable; what it does not have is simply not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from harness.checkpoint.rng import Generator
from harness.errors import CheckpointError


def has_warm_workers(loader: object) -> bool:
    """Whether the loader's persistent workers are there: then opening it again draws no seed for them."""
    return (
        isinstance(loader, DataLoader)
        and loader.persistent_workers
        and loader.num_workers > 0
        and loader._iterator is not None
    )


def count_batches(loader: object) -> int | None:
    """How many batches a map-style DataLoader gives; None for others and where its sampler does not know."""
    # len() of a loader over an IterableDataset makes torch warn when the dataset is longer than it says
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _samplers(loader: object) -> Iterator[tuple[str, object]]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    yield "loader.sampler", getattr(loader, "sampler", None)
    yield "loader.batch_sampler", batch_sampler
    yield "loader.batch_sampler.sampler", getattr(batch_sampler, "sampler", None)


def own_generators(loader: object) -> dict[str, Generator]:
    """Generators among the attributes of the loader and its samplers, each once."""
    found: dict[str, Generator] = {}
    seen: set[int] = set()
    for owner, obj in (("loader", loader), *_samplers(loader)):
        for name, value in getattr(obj, "__dict__", {}).items():
            if isinstance(value, Generator) and id(value) not in seen:
                seen.add(id(value))
                found[f"{owner}.{name}"] = value
    return found


def set_epoch(loader: object, epoch: int) -> None:
    """Tell samplers that draw each epoch's order from its number, such as DistributedSampler."""
    seen: set[int] = set()
    for _, sampler in _samplers(loader):
        tell = getattr(sampler, "set_epoch", None)
        if callable(tell) and id(sampler) not in seen:
            seen.add(id(sampler))
            tell(epoch)


def is_stateful(loader: object) -> bool:
    """Whether the loader saves its own place, as torchdata's StatefulDataLoader does."""
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def load_loader_state(loader: object, state: Any) -> None:
    """Let a stateful loader go where it was.

    Raises:
        CheckpointError: It is not stateful, or does not take the state.
    """
    if not is_stateful(loader):
        raise CheckpointError(
            f"the dataloader had a state_dict when the checkpoint was saved; {type(loader).__name__} takes none",
            hint="give the dataloader the run was started with",
        )
    try:
        loader.load_state_dict(state)  # type: ignore[attr-defined]
    except Exception as error:
        raise CheckpointError(f"the dataloader does not take its saved state: {error!r}") from error
