"""Precision, NaN policy, device, seed and the table of callbacks."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import ConfigError, LossError
from harness.trainer.callback import EVENTS, Callback, bind
from harness.trainer.finite import FiniteLoss
from harness.trainer.precision import Precision
from harness.trainer.setup import check_numbers, find_device, seed_everything

CPU = torch.device("cpu")


def test_every_event_is_a_method_of_callback_and_the_other_way_round() -> None:
    methods = {name for name in vars(Callback) if not name.startswith("_")}
    assert methods == set(EVENTS)


def test_only_what_is_overridden_is_bound_in_the_order_of_the_callbacks() -> None:
    class One(Callback):
        def batch_end(self, trainer: Any) -> None: ...

    class Two(One):
        def fit_end(self, trainer: Any) -> None: ...

    one, two = One(), Two()
    bound = bind([one, two])
    assert bound["batch_end"] == (one.batch_end, two.batch_end)
    assert bound["fit_end"] == (two.fit_end,)
    assert not any(bound[event] for event in EVENTS if event not in ("batch_end", "fit_end"))


def test_a_callback_need_not_be_a_subclass() -> None:
    class Plain:
        def fit_start(self, trainer: Any) -> None: ...

    plain: Any = Plain()
    assert bind([plain])["fit_start"] == (plain.fit_start,)


@pytest.mark.parametrize(
    ("name", "dtype", "scales"),
    [("fp32", None, False), ("amp_bf16", torch.bfloat16, False), ("amp_fp16", torch.float16, True)],
)
def test_precision_by_composers_names(name: str, dtype: torch.dtype | None, scales: bool) -> None:
    precision = Precision.named(name, CPU)
    assert (precision.scaler is not None) is scales
    if precision.autocast is None:
        assert dtype is None
        return
    for _ in range(2):  # it can be entered again
        with precision.autocast:
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype


@pytest.mark.parametrize("name", ["bf16", "", "FP32", None, 16])
def test_an_unknown_precision_lists_the_known(name: Any) -> None:
    with pytest.raises(ConfigError, match="fp32, amp_bf16, amp_fp16"):
        Precision.named(name, CPU)


def test_warn_says_it_the_first_time_and_every_hundredth(caplog: pytest.LogCaptureFixture) -> None:
    finite = FiniteLoss("warn")
    with caplog.at_level(logging.WARNING):
        for step in range(1, 151):
            finite.found(step, "nan")
    assert [record.getMessage() for record in caplog.records] == [
        "the loss of step 1 is nan (1 such steps so far)",
        "the loss of step 101 is nan (101 such steps so far)",
    ]


def test_stop_names_the_step_and_the_value() -> None:
    with pytest.raises(LossError, match="the loss of step 7 is inf and nan_policy is 'stop'"):
        FiniteLoss("stop").found(7, "inf")


class Late:
    """A number on its way from a device that is as many steps behind as asked for."""

    def __init__(self, value: float, *, arrived: bool) -> None:
        self._value = value
        self.arrived = arrived
        self.num_waits = 0

    def value(self) -> float:
        self.num_waits += not self.arrived
        return self._value


def _late(*values: float) -> list[Any]:
    return [Late(value, arrived=False) for value in values]


def test_a_device_is_not_waited_for_and_its_bad_loss_is_told_with_its_own_step() -> None:
    finite, late = FiniteLoss("stop"), _late(1.0, float("inf"), 1.0, 1.0)
    for step, loss in enumerate(late[:3], start=1):
        finite.check_later(step, loss)
    late[0].arrived = late[1].arrived = True
    with pytest.raises(LossError, match=r"the loss of step 2 is inf.*\n.*resume from the last checkpoint"):
        finite.check_later(4, late[3])
    assert sum(loss.num_waits for loss in late) == 0


def test_a_bad_loss_still_on_its_way_is_found_before_weights_are_kept_each_time() -> None:
    finite, late = FiniteLoss("stop"), _late(1.0, float("nan"))
    finite.check_later(1, late[0])
    finite.settle()
    finite.check_later(2, late[1])
    for _ in range(2):  # the second checkpoint would hold the same weights
        with pytest.raises(LossError, match="the loss of step 2"):
            finite.settle()
    assert [loss.num_waits for loss in late] == [1, 1]


def test_an_unknown_nan_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="nan_policy='ignore'.*\n.*'warn' or 'stop'"):
        FiniteLoss("ignore")


def test_a_seed_seeds_all_three_generators() -> None:
    def draw() -> tuple[float, float, float]:
        seed_everything(3)
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    assert draw() == draw()


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "17", True, None])
def test_a_seed_that_is_none_is_refused(seed: Any) -> None:
    with pytest.raises(ConfigError, match="seed="):
        seed_everything(seed)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "cpu:x", 3.5, ["cpu"]])
def test_a_device_that_is_not_there_is_refused_by_its_name(device: Any) -> None:
    with pytest.raises(ConfigError, match="device=.*cannot be used"):
        find_device(device)


@pytest.mark.parametrize(
    ("microbatch_size", "grad_clip_norm", "step_schedulers", "option"),
    [
        (0, None, "batch", "microbatch_size=0"),
        (2.5, None, "batch", "microbatch_size=2.5"),
        (True, None, "batch", "microbatch_size=True"),
        (None, 0, "batch", "grad_clip_norm=0"),
        (None, -1.0, "batch", "grad_clip_norm=-1.0"),
        (None, float("nan"), "batch", "grad_clip_norm=nan"),
        (None, "1", "batch", "grad_clip_norm='1'"),
        (None, None, "step", "step_schedulers='step'"),
    ],
)
def test_numbers_that_cannot_work_are_refused(
    microbatch_size: Any, grad_clip_norm: Any, step_schedulers: Any, option: str
) -> None:
    with pytest.raises(ConfigError, match=option):
        check_numbers(microbatch_size, grad_clip_norm, step_schedulers)
