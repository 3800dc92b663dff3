"""Evaluation is exact over uneven batches, and leaves no trace in what is being trained."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.errors import DataError
from harness.trainer.evaluation import evaluate
from harness.trainer.precision import Precision

CPU = torch.device("cpu")


class Identity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x)


def run(model: nn.Module, batches: Any, **metrics: Any) -> dict[str, float]:
    return evaluate(
        model,
        batches,
        forward=model,
        loss=lambda outputs, batch: outputs.mean(),
        metrics=metrics,
        device=CPU,
        precision=Precision.named("fp32", CPU),
    )


def test_the_mean_is_over_samples_and_not_over_batches() -> None:
    batches = [torch.zeros(3, 1), torch.full((1, 1), 8.0)]
    results = run(Identity(), batches, largest=lambda outputs, batch: outputs.max())
    assert results == {"loss": 2.0, "largest": 2.0}


def test_a_metric_may_be_a_plain_number() -> None:
    assert run(Identity(), [torch.zeros(2, 1)], size=lambda outputs, batch: len(batch))["size"] == 2


def test_the_sum_is_exact_over_many_batches() -> None:
    batches = [torch.full((1, 1), 0.1) for _ in range(1000)]
    assert run(Identity(), batches)["loss"] == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_every_module_is_back_in_its_own_mode() -> None:
    model = Identity().train()
    model.frozen.eval()
    run(model, [torch.ones(2, 1)])
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)


def test_the_model_is_in_eval_mode_meanwhile_and_takes_no_gradient() -> None:
    model = Identity().train()
    seen: list[tuple[bool, bool]] = []
    run(model, [torch.ones(2, 1)], look=lambda *_: seen.append((model.training, torch.is_grad_enabled())) or 0.0)
    assert seen == [(False, False)]


def test_no_random_number_of_training_is_used_up() -> None:
    def draw(*_: Any) -> torch.Tensor:
        random.random(), np.random.rand()
        return torch.rand(())

    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = (torch.rand(1).item(), random.random(), np.random.rand())
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    run(Identity(), [torch.ones(2, 1)], draw=draw)
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected


def test_a_metric_that_raises_leaves_the_model_training() -> None:
    model = Identity().train()
    with pytest.raises(ZeroDivisionError):
        run(model, [torch.ones(2, 1)], broken=lambda *_: 1 / 0)
    assert model.training


def test_no_batch_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="eval_dataloader yielded no batch"):
        run(Identity(), [])
