"""Lightning Fabric: a loop by hand whose model, optimizer and dataloader went through `fabric.setup*`.

Fabric has no profiler of its own: the loop is the user's and steps torch's.
"""

from __future__ import annotations

from collections.abc import Callable

import lightning
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from peer import NEVER, Setup
from torch import Tensor

VERSION = lightning.__version__
NOTES = {
    "off": "setup, setup_dataloaders, fabric.backward",
    "tensorboard": "fabric.log to its TensorBoardLogger, 1 value a step",
    "profiler-idle": "no integration of its own: torch.profiler.profile stepped in the loop",
}


def train(setup: Setup) -> None:
    """Train with Fabric."""
    loggers = [TensorBoardLogger(root_dir=setup.folder)] if setup.case == "tensorboard" else []
    fabric = Fabric(accelerator="cpu", devices=1, loggers=loggers)
    fabric.launch()
    if setup.case == "tensorboard":
        _loop(fabric, setup, lambda step, loss: fabric.log("loss", loss.item(), step))
        fabric.logger.finalize("success")
    elif setup.case == "profiler-idle":
        schedule = torch.profiler.schedule(wait=NEVER, warmup=1, active=1)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], schedule=schedule) as profiler:
            _loop(fabric, setup, lambda _step, _loss: profiler.step())
    else:
        _loop(fabric, setup, None)


def _loop(fabric: Fabric, setup: Setup, after: Callable[[int, Tensor], None] | None) -> None:
    model, optimizer = fabric.setup(setup.parts.model, setup.parts.optimizer)
    loader, loss_of = fabric.setup_dataloaders(setup.loader), setup.parts.loss
    for step, batch in enumerate(loader):
        loss = loss_of(model(batch[0]), batch)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if after is not None:
            after(step, loss)
