"""Lightning's Trainer, automatic optimization: progress bar, summary, checkpoints and logger are off.

`off` is `barebones=True`, which Lightning documents for measuring its own overhead; the other cases cannot have it and
turn the same features off one by one. Its PyTorchProfiler is told not to record module names, which costs hooks on
every module. It fails at the end of a training in which no window opened, so it is given one in the warm-up, and is
idle from there on.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PyTorchProfiler
from peer import Setup
from torch import Tensor
from torch.optim import Optimizer

from harness.bench.interleaved import TrainedParts

VERSION = lightning.__version__
NOTES = {
    "off": "Trainer(barebones=True)",
    "tensorboard": "self.log to TensorBoardLogger, log_every_n_steps=1; it logs 2 values a step",
    "profiler-idle": "PyTorchProfiler(schedule=..., record_module_names=False), its one window in the warm-up",
}


class _Module(LightningModule):
    def __init__(self, parts: TrainedParts, *, logs: bool) -> None:
        super().__init__()
        self.model = parts.model
        self._loss, self._optimizer, self._logs = parts.loss, parts.optimizer, logs

    def training_step(self, batch: Any, _batch_idx: int) -> Tensor:
        loss = self._loss(self.model(batch[0]), batch)
        if self._logs:
            self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Optimizer:
        return self._optimizer


def train(setup: Setup) -> None:
    """Train with a Trainer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=1, **_options(setup))
    trainer.fit(_Module(setup.parts, logs=setup.case == "tensorboard"), setup.loader)


def _options(setup: Setup) -> dict[str, Any]:
    if setup.case == "off":
        return {"barebones": True}
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    if setup.case == "tensorboard":
        return {**quiet, "logger": TensorBoardLogger(save_dir=setup.folder), "log_every_n_steps": 1}
    profiler = PyTorchProfiler(
        dirpath=setup.folder,
        filename="profile",
        record_module_names=False,
        schedule=torch.profiler.schedule(wait=0, warmup=1, active=1, repeat=1),
    )
    return {**quiet, "logger": False, "profiler": profiler}
