"""What the Trainer's constructor checks and builds before it owns a run: device, seed, numbers, what is saved."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from harness.errors import ConfigError
from harness.trainer.callback import EVENTS, Callback
from harness.trainer.train_step import StepParts

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

_log = logging.getLogger(__name__)


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (all devices).

    Raises:
        ConfigError: The seed is not an integer from 0 to 2^32 - 1.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed!r} is not an integer from 0 to 2^32 - 1", hint="give for example seed=17")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def find_device(device: str | torch.device | None) -> torch.device:
    """The device to train on; CUDA where there is one, if none is named.

    Raises:
        ConfigError: The name means nothing to torch, the device is not there, or it holds no numbers.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise ValueError("it holds no data")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0].split(". ")[0]  # torch goes on with all backends it knows
        raise ConfigError(f"device={str(device)!r} cannot be used: {reason}", hint="give cpu or cuda:0") from error
    return found


def check_numbers(microbatch_size: int | None, grad_clip_norm: float | None, step_schedulers: str) -> None:
    """Refuse settings that cannot work.

    Raises:
        ConfigError: One of them; says which.
    """
    if microbatch_size is not None and (type(microbatch_size) is not int or microbatch_size < 1):
        raise ConfigError(f"microbatch_size={microbatch_size!r} is not a whole number of 1 or more")
    if grad_clip_norm is not None and not (isinstance(grad_clip_norm, (int, float)) and grad_clip_norm > 0):
        raise ConfigError(f"grad_clip_norm={grad_clip_norm!r} is not greater than zero", hint="None does not clip")
    if step_schedulers not in ("batch", "epoch"):
        raise ConfigError(f"step_schedulers={step_schedulers!r} is not known", hint="give 'batch' or 'epoch'")


def check_objects(
    model: Any, optimizers: Any, schedulers: Any, callbacks: Any, *, eval_dataloader: Any, metrics: Any
) -> None:
    """Refuse objects of a wrong kind, which would be found out in the first step that needs them, or never.

    Args:
        model: What is trained.
        optimizers: One, several, or None.
        schedulers: One, several, or None.
        callbacks: Several.
        eval_dataloader: What is evaluated on, or None.
        metrics: Functions by name, or None.

    Raises:
        ConfigError: One of them; says which.
    """
    _check_kind("model", model, nn.Module, "a torch.nn.Module, not its class")
    if isinstance(optimizers, (list, tuple)) and not optimizers:
        raise ConfigError("optimizers is empty: nothing would be trained", hint="None makes AdamW(lr=1e-3)")
    for optimizer in as_list(optimizers):
        _check_kind("optimizers", optimizer, torch.optim.Optimizer, "torch optimizers")
    for scheduler in as_list(schedulers):
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ConfigError(
                "schedulers: ReduceLROnPlateau is stepped with a metric, which no scheduler is given here",
                hint="step it in a callback's eval_end, with trainer.state.eval_metrics",
            )
    _check_kind("callbacks", callbacks, (list, tuple), "a list of callbacks")
    for callback in callbacks:
        if isinstance(callback, type) or not any(hasattr(callback, event) for event in EVENTS):
            raise ConfigError(
                f"callbacks has {callback!r}, which is no callback", hint="give instances: callbacks=[MyCallback()]"
            )
    _check_metrics(metrics, has_data=eval_dataloader is not None)


def _check_metrics(metrics: Any, *, has_data: bool) -> None:
    if not metrics:
        return
    _check_kind("metrics", metrics, Mapping, "functions by name, such as {'accuracy': accuracy}")
    for name, metric in metrics.items():
        if name == "loss" or not isinstance(name, str) or not callable(metric):
            raise ConfigError(
                f"metrics[{name!r}]={metric!r} cannot be used",
                hint="give functions metric(outputs, batch) by name; the name loss is the loss's own",
            )
    if not has_data:
        _log.warning("metrics are computed in evaluation only, and there is no eval_dataloader")


def _check_kind(option: str, value: Any, kind: Any, expected: str) -> None:
    if not isinstance(value, kind):
        raise ConfigError(f"{option}={value!r:.80} is a {type(value).__name__}", hint=f"give {expected}")


def as_list(items: Any) -> list[Any]:
    """One thing or several, as a list."""
    if items is None:
        return []
    return list(items) if isinstance(items, (list, tuple)) else [items]


def default_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """What trains a model whose user named no optimizer."""
    _log.info("no optimizers given: training with AdamW(lr=1e-3)")
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def stateful(parts: StepParts, schedulers: Sequence[LRScheduler], callbacks: Sequence[Callback]) -> dict[str, Any]:
    """What a checkpoint holds, by name; a callback is named by its place and class."""
    state: dict[str, Any] = {"model": parts.model}
    state.update({f"optimizer{i}": optimizer for i, optimizer in enumerate(parts.optimizers)})
    state.update({f"scheduler{i}": scheduler for i, scheduler in enumerate(schedulers)})
    if parts.precision.scaler is not None:
        state["scaler"] = parts.precision.scaler
    for i, callback in enumerate(callbacks):
        if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
            state[f"callback{i}-{type(callback).__name__}"] = callback
    return state
