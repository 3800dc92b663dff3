"""A workload and a callback so small that a microsecond shows."""

# ruff: noqa: ARG002 - what a callback is given is not its choice

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from harness.trainer.callback import Callback
from harness.trainer.trainer import Trainer
from harness.workloads.base import Workload

WIDTH = 64
BATCH_SIZE = 32


def build() -> Workload:
    """Two `Linear(64, 64)`, batch 32, SGD: about 0.2 ms a step on one core. Seed before."""
    generator = torch.Generator().manual_seed(1)
    batch = (
        torch.randn(BATCH_SIZE, WIDTH, generator=generator),
        torch.randint(WIDTH, (BATCH_SIZE,), generator=generator),
    )
    return Workload(
        model=nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)),
        train_dataloader=[batch],
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1e-3),
        loss_fn=_cross_entropy,
        description="an MLP of 8,000 weights",
    )


class EveryEvent(Callback):
    """Asks for each event of a step and does next to nothing with it."""

    num_calls = 0

    def batch_start(self, trainer: Trainer, batch: Any) -> None:
        self.num_calls += 1

    def after_forward(self, trainer: Trainer, outputs: Any) -> None:
        self.num_calls += 1

    def after_loss(self, trainer: Trainer, loss: Tensor) -> None:
        self.num_calls += 1

    def after_backward(self, trainer: Trainer) -> None:
        self.num_calls += 1

    def batch_end(self, trainer: Trainer) -> None:
        self.num_calls += 1


def _cross_entropy(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(outputs, batch[1])
