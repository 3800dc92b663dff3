"""transformers' Trainer, with a model of one's own: `compute_loss` and `get_train_dataloader` are overridden.

Speed: no gradient clipping, no NaN filter, no progress bar, `PrinterCallback` removed. It computes the norm of the
gradient in every step all the same. Through accelerate it looks one batch ahead. The trainer has no torch profiler of
its own: a `TrainerCallback` steps one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import transformers
from accelerate_loop import prepared
from peer import NEVER, Setup, SteppedDataLoader
from torch import Tensor, nn
from transformers import PretrainedConfig, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

VERSION = transformers.__version__
NOTES = {
    "off": "report_to='none', logging and saving off, max_grad_norm=0, logging_nan_inf_filter=False",
    "tensorboard": "report_to='tensorboard', logging_steps=1; it logs 4 values a step",
    "profiler-idle": "no integration of its own: a TrainerCallback steps torch.profiler.profile",
}


class _Trainer(Trainer):
    def __init__(self, setup: Setup, **options: Any) -> None:
        model = setup.parts.model
        if dataclasses.is_dataclass(config := getattr(model, "config", None)):
            # It takes a model's `config` for one of its own and writes to it.
            model.config = PretrainedConfig(**dataclasses.asdict(config))
        super().__init__(model, optimizers=(setup.parts.optimizer, None), **options)
        self._setup, self._loss = setup, setup.parts.loss

    def get_train_dataloader(self) -> Any:
        loader = self._setup.loader
        return prepared(self.accelerator, SteppedDataLoader(_as_dicts(loader), len(loader)))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,  # noqa: ARG002
        num_items_in_batch: Tensor | int | None = None,  # noqa: ARG002
    ) -> Tensor:
        return self._loss(model(inputs["inputs"]), (inputs["inputs"], inputs["targets"]))


class _Step(TrainerCallback):
    def __init__(self, profiler: torch.profiler.profile) -> None:
        self._profiler = profiler

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        self._profiler.step()


def _as_dicts(pairs: Iterable[Any]) -> Iterator[dict[str, Tensor]]:
    """Batches as the trainer wants them."""
    for inputs, targets in pairs:
        yield {"inputs": inputs, "targets": targets}


def train(setup: Setup) -> None:
    """Train with a Trainer."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(setup.folder / "tensorboard")
    logs = setup.case == "tensorboard"
    arguments = TrainingArguments(
        output_dir=str(setup.folder),
        use_cpu=True,
        num_train_epochs=1,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        report_to="tensorboard" if logs else "none",
        logging_strategy="steps" if logs else "no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = _Trainer(setup, args=arguments)
    trainer.remove_callback(PrinterCallback)
    if setup.case == "profiler-idle":
        schedule = torch.profiler.schedule(wait=NEVER, warmup=1, active=1)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], schedule=schedule) as profiler:
            trainer.add_callback(_Step(profiler))
            trainer.train()
    else:
        trainer.train()
