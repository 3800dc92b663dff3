"""This project's Trainer. Its recorder and its JSONL and text logs are on in every case: they cannot be turned off.

`off` logs the loss of each step to JSONL and samples the machine once a second; no checkpoints.
"""

from __future__ import annotations

from peer import NEVER, Setup

import harness
from harness.capture.schedule import Schedule

VERSION = harness.__version__
NOTES = {
    "off": "recorder, JSONL (the loss each step) and system sampler are on",
    "tensorboard": "the same and loggers=['tensorboard'], the loss each step",
    "profiler-idle": "the same as off and a recipe whose window never comes",
}


def train(setup: Setup) -> int:
    """Train with `harness.Trainer`; returns the CPU time of the system sampler."""
    recipe = harness.Recipe(name="idle", schedule=Schedule(skip_first=NEVER, active=1))
    trainer = harness.Trainer(
        model=setup.parts.model,
        train_dataloader=setup.loader,
        max_duration=f"{setup.num_steps}ba",
        loss_fn=setup.parts.loss,
        optimizers=setup.parts.optimizer,
        device="cpu",
        run_name="peers",
        root=setup.folder,
        save_interval=None,
        loggers=["tensorboard"] if setup.case == "tensorboard" else [],
        profile=recipe if setup.case == "profiler-idle" else None,
    )
    trainer.fit()
    return trainer.session.attempt.own_cost().threads_cpu_ns["system"]
