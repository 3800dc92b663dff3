"""pytorch-ignite: an `Engine` around an update function, as in its quick start.

The update function returns the loss as it is; the quick start's `loss.item()` is left to the TensorBoard handler, which
needs it. Ignite has no torch profiler of its own: a handler steps one, as its maintainers advise (ignite issue 1916).
"""

from __future__ import annotations

from typing import Any

import ignite
import torch
from ignite.engine import Engine, Events
from ignite.handlers.tensorboard_logger import TensorboardLogger
from peer import NEVER, Setup
from torch import Tensor

VERSION = ignite.__version__
NOTES = {
    "off": "Engine with an update function, no handlers",
    "tensorboard": "TensorboardLogger.attach_output_handler, 1 value a step",
    "profiler-idle": "no integration of its own: a handler steps torch.profiler.profile",
}


def train(setup: Setup) -> None:
    """Train with an Engine."""
    model, loss_of, optimizer = setup.parts.model, setup.parts.loss, setup.parts.optimizer

    def update(_engine: Engine, batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model(batch[0]), batch)
        loss.backward()
        optimizer.step()
        return loss

    model.train()
    engine = Engine(update)
    if setup.case == "tensorboard":
        with TensorboardLogger(log_dir=str(setup.folder)) as logger:
            logger.attach_output_handler(
                engine,
                event_name=Events.ITERATION_COMPLETED,
                tag="training",
                output_transform=lambda loss: {"loss": loss.item()},
            )
            engine.run(setup.loader, max_epochs=1)
    elif setup.case == "profiler-idle":
        schedule = torch.profiler.schedule(wait=NEVER, warmup=1, active=1)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], schedule=schedule) as profiler:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: profiler.step())
            engine.run(setup.loader, max_epochs=1)
    else:
        engine.run(setup.loader, max_epochs=1)
