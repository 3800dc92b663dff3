"""The two workloads that every framework trains: `tiny` exposes microseconds, `charlm` shows percent.

Both are the ones of the rest of the suite, without what a bare loop has not: no schedule, no clipping. Batches are made
before the loop and come round again; each is an (inputs, targets) pair.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

import torch
from cells import WORKLOADS
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name everybody uses

from harness.bench.interleaved import TrainedParts
from harness.workloads.base import Workload
from harness.workloads.load import load_workload

_NUM_BATCHES = 64
_SEED = 17

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Twins:
    """Two of the same, with equal weights, and what both train on."""

    bare: TrainedParts
    """For the bare loop."""
    subject: TrainedParts
    """For the framework."""
    batches: list[Pair]
    """Made once; the loops go round them."""


def build(name: str) -> Twins:
    """Build a workload twice."""
    torch.manual_seed(_SEED)
    workload = load_workload(WORKLOADS[name].spec)
    twin = copy.deepcopy(workload.model)
    rounds = chain.from_iterable(repeat(workload.train_dataloader))
    return Twins(
        bare=_parts(workload, twin),
        subject=_parts(workload, workload.model),
        batches=[_pair(batch) for batch in islice(rounds, _NUM_BATCHES)],
    )


def _parts(workload: Workload, model: nn.Module) -> TrainedParts:
    loss = workload.loss_fn if workload.loss_fn is not None else _next_token_loss
    return TrainedParts(model=model.train(), optimizer=workload.optimizer(model), loss=loss)


def _next_token_loss(outputs: Tensor, batch: Pair) -> Tensor:
    """What `harness.models.gpt.GPT.loss` computes, on a pair."""
    return F.cross_entropy(outputs.flatten(0, 1), batch[1].flatten())


def _pair(batch: Any) -> Pair:
    inputs, targets = batch.values() if isinstance(batch, Mapping) else batch
    return inputs, targets
