"""Passes over the start of a sampler's order without reading the data it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from harness.errors import CheckpointError


class SkippingSampler:
    """Stands in for a loader's sampler while an epoch is resumed, and for good with persistent workers.

    Asks the real sampler for its iterator exactly when the DataLoader would, because a sampler may draw in
    its `__iter__`, but takes from it only afterwards: the DataLoader draws its workers' seed in between.

    Args:
        sampler: The real one.
        skip_batches: How many of its items to pass over.
        num_ignored: How many times to answer with an empty iterator first.
        before: Called before the real sampler is asked.
    """

    def __init__(self, sampler: Any, skip_batches: int, *, num_ignored: int, before: Callable[[], None] | None) -> None:
        self._sampler = sampler
        self._skip_batches = skip_batches
        self._num_ignored = num_ignored
        self._before = before
        self._current: _SkippingIterator | None = None
        self._finished = False

    def __iter__(self) -> Iterator[Any]:
        if self._finished:
            return iter(self._sampler)
        if self._num_ignored:
            self._num_ignored -= 1
            return iter(())
        if self._before is not None:
            self._before()
        self._current = _SkippingIterator(iter(self._sampler), self._skip_batches)
        return self._current

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "_sampler":
            raise AttributeError(name)  # not set yet: copying or unpickling asks before
        return getattr(self._sampler, name)

    def finish(self) -> bool:
        """Skip now if nobody has asked yet; returns whether this sampler is iterated at all."""
        self._finished = True
        # It leads back to the loader, which may keep this sampler for good: in a cycle, workers are shut down only by
        # the garbage collector, after their queues, and each is waited for 5 s.
        self._before = None
        if self._current is None:
            return False
        self._current.skip()
        return True


class _SkippingIterator:
    def __init__(self, iterator: Iterator[Any], skip: int) -> None:
        self._iterator = iterator
        self._num_batches = skip
        self._num_left = skip

    def skip(self) -> None:
        while self._num_left:
            try:
                next(self._iterator)
            except StopIteration:
                raise too_few(self._num_batches - self._num_left, self._num_batches) from None
            self._num_left -= 1

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.skip()
        return next(self._iterator)


def too_few(num_batches: int, skip_batches: int) -> CheckpointError:
    """The error for data that ends before the place a checkpoint was saved at."""
    return CheckpointError(
        f"the dataloader ended after {num_batches} batches, and the checkpoint was saved after {skip_batches}",
        hint="give the same data as before, or start a new run from the weights",
    )
