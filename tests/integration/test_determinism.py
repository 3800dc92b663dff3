"""Naming, logging, profiling, evaluating and saving change nothing in what is trained; seeding changes no name."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from harness import session
from harness.capture.recipe import Recipe
from harness.capture.schedule import Schedule

LOSS = "loss/train/total"
RECIPE = Recipe(name="own", schedule=Schedule(wait=3, warmup=1, active=2))


def losses_and_draws(make_trainer: Callable[..., Any], written: Callable[..., Any], **options: Any) -> Any:
    """All losses of a small run with dropout and shuffling, and what the three generators give afterwards."""
    trainer = make_trainer(max_duration="3ep", **options)
    trainer.fit()
    draws = (torch.rand(3).tolist(), random.random(), float(np.random.rand()))
    return written(trainer.state.run_name).by_step(LOSS), draws


@pytest.fixture
def train(
    make_trainer: Callable[..., Any], make_loader: Callable[..., Any], written: Callable[..., Any]
) -> Callable[..., Any]:
    def run(**options: Any) -> Any:
        return losses_and_draws(make_trainer, written, train_dataloader=make_loader(shuffle=True), **options)

    return run


@pytest.mark.parametrize(
    "extra",
    [
        {"run_name": None},
        {"run_name": "bar", "profile": RECIPE},
        {"run_name": "bar", "loggers": ["tensorboard", "progress"]},
        {"run_name": "bar", "save_interval": "1ba"},
        {"run_name": "bar", "save_interval": "1ep", "save_num_checkpoints_to_keep": 1},
        {"run_name": "bar", "eval": "2ba"},
        {"run_name": "bar", "eval": "1ep", "profile": RECIPE, "save_interval": "3ba", "loggers": ["tensorboard"]},
    ],
    ids=lambda extra: "+".join(extra),
)
def test_losses_are_the_same_bit_for_bit(
    extra: dict[str, Any], train: Callable[..., Any], make_loader: Callable[..., Any]
) -> None:
    plain, draws = train()
    options = dict(extra)
    if "eval" in options:
        options |= {"eval_interval": options.pop("eval"), "eval_dataloader": make_loader(3, shuffle=True)}
    losses, draws_with = train(**options)
    assert len(plain) == 30
    assert losses == plain
    # The last evaluation opens its dataloader after the last step; all draws before that were put back too.
    assert draws_with == draws


def test_sparse_logging_logs_the_same_numbers(train: Callable[..., Any]) -> None:
    plain, _ = train()
    sparse, _ = train(run_name="bar", log_interval="7ba")
    assert sparse == {step: plain[step] for step in (7, 14, 21, 28)}


def test_another_seed_gives_other_losses(train: Callable[..., Any]) -> None:
    assert train(run_name="a", seed=1)[0] != train(run_name="b", seed=2)[0]


def test_without_a_seed_the_users_own_seeding_counts(train: Callable[..., Any]) -> None:
    results = []
    for name in ("a", "b"):
        torch.manual_seed(4)
        random.seed(4)
        np.random.seed(4)
        results.append(train(run_name=name, seed=None))
    assert results[0] == results[1]


def test_seeding_gives_no_name_twice(root: Any) -> None:
    names = []
    for _ in range(5):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        with session(root=root) as run:
            names.append(run.run_name.split("-", 1)[1])
    assert len(set(names)) == 5


def test_a_session_draws_no_random_number(root: Any) -> None:
    def draws() -> Any:
        return torch.rand(2).tolist(), random.random(), float(np.random.rand())

    def seed() -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)

    seed()
    expected = draws()
    seed()
    with session(root=root, profile=RECIPE, loggers=["tensorboard"]) as run:
        for _ in run.steps([torch.ones(2)] * 10, "1ep"):
            run.log({"x": 1.0})
    assert draws() == expected
