"""The place in the data: a run that is resumed in the middle of an epoch gets the batches it would have got.

The order of an epoch is drawn at its start, from generators that training goes on to move. So the states of
that moment are kept until the epoch ends and saved with each checkpoint. To resume, they are put back, the
dataloader's iterator is made and its sampler advanced past the batches that were trained on, without reading
them. Every draw that the uninterrupted run made for its order is then made again. Last, the caller puts back
the generators as they were when the checkpoint was saved, and training goes on bit-equal.

Not reproduced in the middle of an epoch: what dataloader workers draw for themselves (augmentation), because
a worker starts from its seed and not from where it was; and the order of a sampler that draws index after
index from a global generator that training draws from in between, when workers fetch ahead.
"""

from __future__ import annotations

import copy
import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from harness.checkpoint.dataloader import (
    count_batches,
    has_warm_workers,
    is_stateful,
    load_loader_state,
    own_generators,
    set_epoch,
)
from harness.checkpoint.rng import collect_rng, generator_state, restore_generator, restore_rng
from harness.checkpoint.skipping import SkippingSampler, too_few
from harness.errors import CheckpointError

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class EpochStart:
    """All that the order of an epoch depends on, as it was just before the dataloader was opened for it."""

    epoch: int
    """Epochs completed before this one."""
    rng: Mapping[str, Any]
    """The global generators: `collect_rng`."""
    generators: Mapping[str, Any]
    """Generators that the loader and its samplers own, by where they are, such as `loader.generator`."""
    warm: bool
    """Whether persistent workers were already there: then opening the loader draws no seed for them."""
    num_batches: int | None
    """How many batches a map-style loader has."""
    loader_state: Any = None
    """From a checkpoint: what the loader's own `state_dict` said when it was saved."""
    loader: object = field(default=None, repr=False, compare=False)
    """The loader, for its `state_dict` when the next checkpoint is saved. Not saved itself."""

    @classmethod
    def capture(cls, loader: Iterable[Any], *, epoch: int, resumed: EpochStart | None = None) -> EpochStart:
        """Take the states now, between two epochs: before `open_epoch`, or for a checkpoint saved between
        them.

        Takes about 0.1 ms.

        Args:
            loader: What is iterated.
            epoch: Epochs completed.
            resumed: From a checkpoint that was saved between epochs: what belongs to the loader is put back
                first. The global generators are the caller's to restore before.

        Raises:
            CheckpointError: `resumed` was taken from another kind of loader.
        """
        if resumed is not None:
            resumed._restore_loader(loader)
        return cls(
            epoch=epoch,
            rng=collect_rng(),
            generators={name: generator_state(own) for name, own in own_generators(loader).items()},
            warm=has_warm_workers(loader) or (resumed is not None and resumed.warm),
            num_batches=count_batches(loader),
            loader=loader,
        )

    def restore(self, loader: Iterable[Any]) -> None:
        """Put back the global generators, the loader's own, and the loader's own state.

        Raises:
            CheckpointError: The loader has other generators, or they do not take their states.
        """
        self._restore_loader(loader)
        restore_rng(self.rng)

    def _restore_loader(self, loader: Iterable[Any]) -> None:
        own = own_generators(loader)
        if set(own) != set(self.generators):
            raise CheckpointError(
                "the dataloader's generators differ from those it had when the checkpoint was saved:"
                f" now {', '.join(own) or 'none'}; then {', '.join(self.generators) or 'none'}",
                hint="build the dataloader as before; its order could not be continued otherwise",
            )
        for name, generator in own.items():
            restore_generator(generator, self.generators[name], name)
        if self.loader_state is not None:
            load_loader_state(loader, self.loader_state)
        self.loader = loader


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochPosition:
    """Where a checkpoint stands in the data.

    Raises:
        CheckpointError: It stands in the middle of an epoch whose start is unknown.
    """

    start: EpochStart | None
    """The epoch's start. Between epochs: the next one's, captured when the checkpoint is saved."""
    batch_in_epoch: int
    """Batches trained on in this epoch; 0 between epochs."""

    def __post_init__(self) -> None:
        if self.batch_in_epoch < 0 or (self.batch_in_epoch and self.start is None):
            raise CheckpointError(
                f"batch_in_epoch={self.batch_in_epoch} without the epoch's start: the order of its batches is unknown"
            )

    def to_state(self) -> dict[str, Any]:
        """As plain types and tensors. A loader that has a `state_dict` is asked for it now."""
        start = self.start
        if start is None:
            return {"batch_in_epoch": self.batch_in_epoch, "start": None}
        saved = {
            "epoch": start.epoch,
            "rng": dict(start.rng),
            "generators": dict(start.generators),
            "warm": start.warm,
            "num_batches": start.num_batches,
            "loader_state": start.loader.state_dict() if is_stateful(start.loader) else None,  # type: ignore[attr-defined]
        }
        return {"batch_in_epoch": self.batch_in_epoch, "start": saved}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> EpochPosition:
        """Read what `to_state` gave.

        Raises:
            CheckpointError: It is something else.
        """
        try:
            saved = state["start"]
            start = None if saved is None else EpochStart(**saved)
            return cls(start=start, batch_in_epoch=int(state["batch_in_epoch"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's place in the data cannot be read: {error!r}") from error


def open_epoch(loader: Iterable[Any], start: EpochStart | None, *, skip_batches: int = 0) -> Iterator[Any]:
    """Open a dataloader for an epoch, past the batches that an interrupted run has trained on.

    A sampler's `set_epoch` is called. With `skip_batches=0` this is `iter(loader)`: restore the checkpoint's
    global generators before it. With more, the global generators are moved to the epoch's start and through
    the draws for its order: restore the checkpoint's *after* it returns, before the first batch is asked for.

    A map-style DataLoader reads nothing of what is skipped. A loader with `state_dict` and `load_state_dict`
    is asked to go where it was. Any other is read and the batches thrown away, with a warning that says how
    many.

    Args:
        loader: What is iterated.
        start: The epoch's start: just captured, or from the checkpoint.
        skip_batches: How many batches to skip.

    Returns:
        An iterator over the rest; empty when all are skipped.

    Raises:
        CheckpointError: The loader has fewer batches, another number of them, or other generators than it
            had.
        ValueError: Batches are to be skipped in an epoch whose start is not given.
    """
    if start is None:
        if skip_batches:
            raise ValueError(f"skip_batches={skip_batches} needs the epoch's start")
        return iter(loader)
    set_epoch(loader, start.epoch)
    recreated = start.warm and not (has_warm_workers(loader) or is_stateful(loader))
    if not skip_batches and not recreated:
        return iter(loader)
    start.restore(loader)
    if start.loader_state is not None:
        start.loader_state = None
        return iter(loader)
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        _check_num_batches(loader, start, skip_batches)
        iterator = _skip_at_sampler(loader, start, skip_batches, recreated=recreated)
        if iterator is not None:
            return iterator
        start.restore(loader)
    return _skip_by_reading(loader, start, skip_batches, recreated=recreated)


def _check_num_batches(loader: DataLoader[Any], start: EpochStart, skip_batches: int) -> None:
    num_batches = count_batches(loader)
    if skip_batches and num_batches != start.num_batches:
        raise CheckpointError(
            f"the dataloader has {num_batches} batches and had {start.num_batches} when the checkpoint was saved"
            f" after batch {skip_batches} of its epoch: the rest of the epoch cannot be continued",
            hint="give the same data, batch_size and sampler, or start a new run from the weights",
        )


def _skip_at_sampler(
    loader: DataLoader[Any], start: EpochStart, skip_batches: int, *, recreated: bool
) -> Iterator[Any] | None:
    """Open a copy of the loader whose sampler stands in the right place; None if it does not iterate its
    sampler.

    A copy and not a new DataLoader: a subclass may have a constructor of its own.
    """
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    # Making workers asks the sampler twice and draws their seed between; workers that were there ask once,
    # without.
    skipping = SkippingSampler(
        getattr(loader, name),
        skip_batches,
        num_ignored=1 if recreated and loader.num_workers > 0 else 0,
        before=functools.partial(start.restore, loader) if recreated else None,
    )
    twin = copy.copy(loader)
    # past DataLoader.__setattr__, which forbids it: what is forbidden is to change a loader that is in use
    twin.__dict__[name] = skipping
    twin.__dict__["_iterator"] = None
    iterator = iter(twin)
    if not skipping.finish():
        return None
    if loader.persistent_workers and loader.num_workers > 0:
        loader._iterator = twin._iterator  # the next epoch goes on with these workers
    return iterator


def _skip_by_reading(loader: Iterable[Any], start: EpochStart, skip_batches: int, *, recreated: bool) -> Iterator[Any]:
    if isinstance(loader, list | tuple) and skip_batches <= len(loader):
        return itertools.islice(loader, skip_batches, None)
    if skip_batches:
        _log.warning(
            "the dataloader (%s) cannot skip: %d batches are read again and thrown away",
            type(loader).__name__,
            skip_batches,
        )
    iterator = iter(loader)
    if recreated:
        restore_rng(start.rng)  # undo the draw of a seed for workers that, uninterrupted, were there already
    for batch in range(skip_batches):
        try:
            next(iterator)
        except StopIteration:
            raise too_few(batch, skip_batches) from None
    return iterator
