"""What a trainer is training, readable at any time: `trainer.state.run_name`, `trainer.state.timestamp.batch`, …"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from harness.loop.timestamp import Timestamp


@dataclass(slots=True)
class State:
    """The training state. Composer's words."""

    run_name: str
    """The run's name, given or generated; names it in every file, folder and service."""
    model: nn.Module
    """On its device."""
    optimizers: Sequence[Optimizer]
    """All are stepped in each step."""
    schedulers: Sequence[LRScheduler]
    """Learning rate schedules."""
    device: torch.device
    """Where training runs."""
    timestamp: Timestamp
    """Epochs, steps, samples, tokens and time so far, over all attempts."""
    loss: float | Tensor | None = None
    """The last step's loss: a number on a CPU, else a detached tensor, shape (); None before the first."""
    eval_metrics: Mapping[str, float] = field(default_factory=dict)
    """The last evaluation's loss and metrics."""
