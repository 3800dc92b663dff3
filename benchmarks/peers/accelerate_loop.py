"""accelerate: a loop by hand whose model, optimizer and dataloader went through `Accelerator.prepare`.

accelerate makes a DataLoader of its own from the one it is given; the one inside that is replaced with ours, so that
torch's fetching counts neither for it nor for the bare loop. It looks one batch ahead to know the last one.
The profiler is `accelerator.profile()` with a schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import accelerate
from accelerate import Accelerator
from accelerate.utils import ProfileKwargs
from peer import NEVER, Setup, SteppedDataLoader
from torch import Tensor

VERSION = accelerate.__version__
NOTES = {
    "off": "prepare(model, optimizer, dataloader), accelerator.backward",
    "tensorboard": "accelerator.log with log_with='tensorboard', 1 value a step",
    "profiler-idle": "accelerator.profile() with ProfileKwargs(schedule_option=...)",
}


def train(setup: Setup) -> None:
    """Train with an Accelerator."""
    if setup.case == "tensorboard":
        accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=setup.folder)
        accelerator.init_trackers("peers")
        _loop(accelerator, setup, lambda step, loss: accelerator.log({"loss": loss.item()}, step=step))
        accelerator.end_training()
    elif setup.case == "profiler-idle":
        profile = ProfileKwargs(activities=["cpu"], schedule_option={"wait": NEVER, "warmup": 1, "active": 1})
        accelerator = Accelerator(cpu=True, kwargs_handlers=[profile])
        with accelerator.profile() as profiler:
            _loop(accelerator, setup, lambda _step, _loss: profiler.step())
    else:
        _loop(Accelerator(cpu=True), setup, None)


def prepared(accelerator: Accelerator, loader: SteppedDataLoader) -> Any:
    """accelerate's own dataloader around ours."""
    outer = accelerator.prepare(loader)
    outer.base_dataloader = loader
    return outer


def _loop(accelerator: Accelerator, setup: Setup, after: Callable[[int, Tensor], None] | None) -> None:
    model, optimizer = accelerator.prepare(setup.parts.model, setup.parts.optimizer)
    loader, loss_of = prepared(accelerator, setup.loader), setup.parts.loss
    for step, batch in enumerate(loader):
        loss = loss_of(model(batch[0]), batch)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if after is not None:
            after(step, loss)
