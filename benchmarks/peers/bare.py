"""The bare loop, written by hand: by how much it differs from the measurement's own is what cannot be told from zero.

TensorBoard through `torch.utils.tensorboard.SummaryWriter`, the profiler as torch's documentation shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import torch
from peer import NEVER, Setup
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

VERSION = torch.__version__
NOTES = {
    "off": "null control: the bare loop against itself",
    "tensorboard": "SummaryWriter.add_scalar, 1 value a step",
    "profiler-idle": "torch.profiler.profile with a schedule, step() in each step",
}


def train(setup: Setup) -> None:
    """Train by hand."""
    if setup.case == "tensorboard":
        with closing(SummaryWriter(str(setup.folder))) as writer:
            _loop(setup, lambda step, loss: writer.add_scalar("loss", loss.item(), step))
    elif setup.case == "profiler-idle":
        schedule = torch.profiler.schedule(wait=NEVER, warmup=1, active=1)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], schedule=schedule) as profiler:
            _loop(setup, lambda _step, _loss: profiler.step())
    else:
        _bare_loop(setup)


def _bare_loop(setup: Setup) -> None:
    model, loss_of, optimizer = setup.parts.model, setup.parts.loss, setup.parts.optimizer
    for batch in setup.loader:
        loss = loss_of(model(batch[0]), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _loop(setup: Setup, after: Callable[[int, Tensor], None]) -> None:
    model, loss_of, optimizer = setup.parts.model, setup.parts.loss, setup.parts.optimizer
    for step, batch in enumerate(setup.loader):
        loss = loss_of(model(batch[0]), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after(step, loss)
