"""The bundled workloads learn what they are there to learn, through the Trainer and with its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.workloads import Workload, load_workload

pytestmark = pytest.mark.slow


def train(workload: Workload, root: Path) -> Any:
    from harness import Trainer

    optimizer = workload.optimizer(workload.model)
    trainer = Trainer(
        model=workload.model,
        train_dataloader=workload.train_dataloader,
        max_duration=workload.max_duration,
        loss_fn=workload.loss_fn,
        optimizers=optimizer,
        schedulers=workload.scheduler(optimizer) if workload.scheduler else None,
        eval_dataloader=workload.eval_dataloader,
        metrics=workload.metrics,
        run_name="learn",
        root=root,
        seed=1,
        device="cpu",
        grad_clip_norm=workload.grad_clip_norm,
        get_num_tokens=workload.get_num_tokens,
    )
    trainer.fit()
    return trainer.state


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_digits_reaches_more_than_95_pct_of_the_test_pictures(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("sklearn")
    torch.manual_seed(seed)
    state = train(load_workload("digits"), tmp_path)
    assert state.eval_metrics["accuracy"] > 0.95


def test_charlm_gets_clearly_below_the_unigram_entropy(tmp_path: Path) -> None:
    from harness.workloads.charlm import documentation_text, unigram_entropy_nats

    torch.manual_seed(1)
    state = train(load_workload("charlm"), tmp_path)
    # measured 1.78 nats; knowing only how often each character occurs costs 3.25
    assert state.eval_metrics["loss"] < 0.7 * unigram_entropy_nats(documentation_text())
    assert state.eval_metrics["accuracy"] > 0.4
