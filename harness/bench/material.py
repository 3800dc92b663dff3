"""What both loops are given before anything is measured: batches that are in memory, and a model each."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from harness.errors import DataError, WorkloadError

MAX_BATCHES = 64
"""Batches that are read from the dataloader before anything is measured; the loops go round them."""
MAX_BATCH_BYTES = 256 << 20
"""What they may take in memory."""
MAX_LOAD_S = 5.0
"""How long a slow dataloader is asked for more of them."""


def first_batches(loader: Iterable[Any]) -> list[Any]:
    """The batches that the loops go round: as many as the limits above allow, at least one.

    Raises:
        DataError: There is none.
    """
    batches: list[Any] = []
    num_bytes, begin_s = 0, time.monotonic()
    for batch in itertools.islice(iter(loader), MAX_BATCHES):
        batches.append(batch)
        num_bytes += _num_bytes(batch)
        if num_bytes > MAX_BATCH_BYTES or time.monotonic() - begin_s > MAX_LOAD_S:
            break
    if not batches:
        raise DataError("the dataloader yielded no batch", hint="check the dataset's size and drop_last")
    return batches


def twin_of(model: nn.Module, workload: str) -> nn.Module:
    """A copy of the model for the bare loop.

    Raises:
        WorkloadError: It cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a user's module may raise anything while it is copied
        raise WorkloadError(
            f"workload {workload!r}: copy.deepcopy(model) raised {type(error).__name__}: {error}",
            hint="the bare and the measured loop each train a model of their own with equal weights",
        ) from error


def _num_bytes(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return batch.nbytes
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return sum(map(_num_bytes, items))
