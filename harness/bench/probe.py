"""A short training before anything is measured: it fails as `harness train` would, and says how long a step is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from harness.bench.material import twin_of
from harness.bench.spec import IDLE, CaseSpec
from harness.capture.recipe import Recipe
from harness.capture.schedule import Schedule
from harness.trace.steps import read_steps
from harness.trainer.setup import seed_everything
from harness.trainer.trainer import Trainer
from harness.workloads.load import load_workload

MAX_DURATION = "2sec"
"""How long it trains; one step at least."""
_RUN_NAME = "probe"
_NEVER = 1_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What the short training showed."""

    step_us: float
    """Median step without the time that waits for the dataloader: batches are in memory when it is measured."""
    trained_s: float
    """How long it trained; the rest of the process's time is needed to start and to build."""
    has_windows: bool
    """Whether the recipe records anything."""


def run_probe(spec: CaseSpec, root: Path) -> Probe:
    """Train the workload with a case's loggers for two seconds, as `harness train` does, windows left out.

    Args:
        spec: A case whose `profile` is a recipe to check, or None.
        root: An empty folder; the run is written into it as `probe`.

    Raises:
        HarnessError: The workload, a logger or the recipe cannot work.
        Exception: What the user's code raised while it was trained.
    """
    torch.set_num_threads(1)
    recipe = Recipe.load(spec.profile)
    seed_everything(spec.seed)
    workload = load_workload(spec.workload, spec.workload_options)
    trainer = Trainer(
        workload.model,
        workload.train_dataloader,
        max_duration=MAX_DURATION,
        loss_fn=workload.loss_fn,
        optimizers=workload.optimizer(workload.model),
        device="cpu",
        run_name=_RUN_NAME,
        root=root,
        profile=Recipe(name=IDLE, schedule=Schedule(skip_first=_NEVER, active=1)),
        loggers=list(spec.loggers),
        save_interval=None,
        get_num_samples=workload.get_num_samples,
        get_num_tokens=workload.get_num_tokens,
    )
    begin = time.monotonic()
    trainer.fit()
    trained_s = time.monotonic() - begin
    twin_of(workload.model, spec.workload)
    steps = read_steps(root / _RUN_NAME / "steps-rank0.jsonl")
    return Probe(
        step_us=float(np.median(steps.step_us - steps.phases["data"])),
        trained_s=trained_s,
        has_windows=recipe.schedule is not None,
    )
