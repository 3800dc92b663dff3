"""The points in training where a user's code can be called, in loop order.

A callback overrides the methods it needs. Which ones it overrides is looked up once, when `fit` starts, so that an
event nobody asked for costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from harness.trainer.trainer import Trainer

EVENTS = (
    "fit_start",
    "epoch_start",
    "batch_start",
    "after_forward",
    "after_loss",
    "after_backward",
    "batch_end",
    "eval_start",
    "eval_end",
    "epoch_end",
    "fit_end",
    "on_exception",
)
"""In the order in which they happen."""


class Callback:
    """Base of callbacks: override what you need. An exception in one ends the run, as any exception does.

    A callback that has `state_dict` and `load_state_dict` is saved with the checkpoints and restored on resume.

    Example:
        >>> class StopWhenGood(Callback):
        ...     def after_loss(self, trainer, loss):
        ...         if loss < 0.01:
        ...             trainer.stop("the loss is good enough")
    """

    def fit_start(self, trainer: Trainer) -> None:
        """Before the first step; the run directory, the loggers and the resumed state are there."""

    def epoch_start(self, trainer: Trainer) -> None:
        """Before the first batch of an epoch is asked for."""

    def batch_start(self, trainer: Trainer, batch: Any) -> None:
        """A step's batch is on the device."""

    def after_forward(self, trainer: Trainer, outputs: Any) -> None:
        """After each microbatch's forward."""

    def after_loss(self, trainer: Trainer, loss: Tensor) -> None:
        """After each microbatch's loss, shape (), not yet divided by the number of microbatches."""

    def after_backward(self, trainer: Trainer) -> None:
        """After the last microbatch's backward, before the optimizer: gradients are there, unscaled and unclipped."""

    def batch_end(self, trainer: Trainer) -> None:
        """After the optimizer step, before logs and checkpoints are written."""

    def eval_start(self, trainer: Trainer) -> None:
        """Before evaluation; the model is in eval mode."""

    def eval_end(self, trainer: Trainer) -> None:
        """After evaluation; results are in `trainer.state.eval_metrics`."""

    def epoch_end(self, trainer: Trainer) -> None:
        """After the last step of an epoch and its evaluation, before its checkpoint."""

    def fit_end(self, trainer: Trainer) -> None:
        """After the last step, when training ended without an exception."""

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """An exception is about to leave `fit`."""


Handler = Callable[..., None]


def bind(callbacks: Sequence[Callback]) -> dict[str, tuple[Handler, ...]]:
    """For each event the methods that override it, in the order of the callbacks."""
    return {
        event: tuple(
            getattr(callback, event)
            for callback in callbacks
            if getattr(type(callback), event, None) is not getattr(Callback, event) and hasattr(callback, event)
        )
        for event in EVENTS
    }
