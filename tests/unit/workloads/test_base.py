from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from harness.errors import ConfigError, WorkloadError
from harness.models import mnist_model
from harness.workloads import Workload


def make(**changes: Any) -> Workload:
    parts: dict[str, Any] = {
        "model": mnist_model(),
        "train_dataloader": [],
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    }
    return Workload(**(parts | changes))


def test_workload_needs_a_model_data_and_an_optimizer_only() -> None:
    workload = make()
    assert isinstance(workload.optimizer(workload.model), torch.optim.SGD)


def test_workload_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().max_duration = "2ep"  # type: ignore[misc]


def test_optimizer_that_is_built_already_is_refused_with_the_way_to_write_it() -> None:
    built = torch.optim.SGD(mnist_model().parameters(), lr=0.1)
    with pytest.raises(WorkloadError, match=r"(?s)Workload\.optimizer is a SGD.*lambda model"):
        make(optimizer=built)


def test_model_without_a_loss_needs_a_loss_function() -> None:
    with pytest.raises(WorkloadError, match=r"loss_fn is not given and Linear has no method"):
        make(model=nn.Linear(1, 1))
    assert make(model=nn.Linear(1, 1), loss_fn=lambda outputs, batch: outputs.mean()).loss_fn is not None


def test_duration_that_is_none_is_refused_by_the_name_of_the_field() -> None:
    with pytest.raises(ConfigError, match=r"Workload\.max_duration='2 epochs'"):
        make(max_duration="2 epochs")


@pytest.mark.parametrize("norm", [0, -1.0, float("nan"), float("inf")])
def test_norm_to_clip_to_must_be_positive(norm: float) -> None:
    with pytest.raises(WorkloadError, match=r"Workload\.grad_clip_norm"):
        make(grad_clip_norm=norm)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scheduler": 3}, "scheduler is a int"),
        ({"loss_fn": "mse"}, "loss_fn is a str"),
        ({"get_num_tokens": 128}, "get_num_tokens is a int"),
        ({"metrics": {"accuracy": 0.5}}, r"metrics\['accuracy'\] is a float"),
    ],
)
def test_part_that_must_be_a_function_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(WorkloadError, match=named):
        make(**changes)


def test_model_that_is_none_is_refused() -> None:
    with pytest.raises(WorkloadError, match=r"Workload\.model is a str, expected a torch\.nn\.Module"):
        make(model="resnet50", loss_fn=lambda outputs, batch: outputs.mean())


def raises(_: Any) -> Any:
    raise KeyError("no such schedule")


@pytest.mark.parametrize("part", ["optimizer", "scheduler"])
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (raises, "raised KeyError: 'no such schedule'"),
        (lambda _: None, "returned a NoneType, which is no "),
        (lambda _: 3, "returned a int, which is no "),
    ],
)
def test_function_that_makes_nothing_usable_is_named(part: str, function: Any, expected: str) -> None:
    workload = make(**{part: function})
    with pytest.raises(WorkloadError, match=rf"Workload\.{part} {expected}") as caught:
        if part == "optimizer":
            workload.make_optimizer()
        else:
            workload.make_scheduler(workload.optimizer(workload.model))
    assert (caught.value.__cause__ is not None) == (function is raises)


def test_workload_without_a_scheduler_makes_none() -> None:
    workload = make()
    assert workload.make_scheduler(workload.make_optimizer()) is None
