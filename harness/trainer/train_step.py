"""One optimizer step, in the order in which it happens: device copy, forward, backward, optimizer.

Reads like the loop one would write by hand, with the phase borders marked between its lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.errors import LossError
from harness.loggers.late import LateNumber
from harness.timeline.phases import BACKWARD, CALLBACKS, DATA, FORWARD, LOGGERS, OPTIMIZER
from harness.trainer.batch import check_batch, split, to_device

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from harness.loop.session import Session
    from harness.trainer.callback import Handler
    from harness.trainer.finite import FiniteLoss
    from harness.trainer.precision import Precision
    from harness.trainer.trainer import Trainer

LOSS_NAME = "loss/train/total"
"""What the training loss is logged as; Composer's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepParts:
    """What one step needs; fixed when training starts."""

    model: nn.Module
    """Whose gradients are clipped."""
    forward: Callable[[Any], Any]
    """Batch to outputs."""
    loss: Callable[[Any, Any], Tensor]
    """Outputs and batch to a scalar."""
    optimizers: Sequence[Optimizer]
    """All stepped in each step."""
    schedulers: Sequence[LRScheduler]
    """Those that are stepped in each step."""
    device: torch.device
    """Where the batch goes."""
    precision: Precision
    """Autocast and scaler."""
    finite: FiniteLoss
    """Looks at each step's loss; on a CPU at each microbatch's."""
    microbatch_size: int | None
    """Samples in a forward; None takes the batch whole."""
    grad_clip_norm: float | None
    """Largest norm of the gradient; None does not clip, and computes no norm."""


class TrainStep:
    """Trains on one batch.

    Args:
        parts: What to train with.
        session: Whose phases are marked.
        trainer: Given to the callbacks.
        events: Bound callbacks by event.
    """

    def __init__(
        self, parts: StepParts, session: Session, trainer: Trainer, events: dict[str, tuple[Handler, ...]]
    ) -> None:
        self.first_phase = DATA if parts.device.type != "cpu" else FORWARD
        """What a step begins with: the copy to the device is part of getting the data."""
        self._parts = parts
        self._session = session
        self._fanout = session.attempt.fanout
        self._mark = session.recorder.mark
        self._trainer = trainer
        self._batch_start = events["batch_start"]
        self._after_forward = events["after_forward"]
        self._after_loss = events["after_loss"]
        self._after_backward = events["after_backward"]
        self._on_cpu = parts.device.type == "cpu"
        self._forward = parts.forward
        self._loss = parts.loss
        self._autocast = parts.precision.autocast
        self._scaler = parts.precision.scaler
        self._microbatch_size = parts.microbatch_size
        self._is_first = True
        simple = len(parts.optimizers) == 1 and not parts.schedulers and parts.grad_clip_norm is None
        self._only_optimizer = (
            parts.optimizers[0] if simple and self._scaler is None and not self._after_backward else None
        )

    def __call__(self, batch: Any) -> float | Tensor:
        """Run the step and stage its loss for the loggers.

        Returns:
            The loss, the mean over the batch's samples: a number on a CPU, else a detached tensor, shape ().

        Raises:
            DataError: The batch holds no tensors.
            LossError: The loss is no scalar, or not finite under the policy `stop`.
        """
        session, mark = self._session, self._mark
        if self._is_first:
            check_batch(batch)
        if not self._on_cpu:
            batch = to_device(batch, self._parts.device)
            mark(FORWARD)
        if self._batch_start:
            self._call(self._batch_start, batch)
        if self._microbatch_size is None:
            loss = self._forward_backward(batch, None)
        else:
            loss = self._accumulate(batch, self._microbatch_size)
        mark(OPTIMIZER)
        if self._only_optimizer is not None:
            self._only_optimizer.step()
            self._only_optimizer.zero_grad()
        else:
            self._optimize()
        self._is_first = False
        if isinstance(loss, Tensor):
            self._send_for(loss)
        elif session.log_now:
            self._fanout.staged[LOSS_NAME] = loss
        return loss

    def _send_for(self, loss: Tensor) -> None:
        """Have the loss copied from the device, once for the policy and the loggers."""
        self._mark(LOGGERS)
        number, session = LateNumber(loss), self._session
        self._parts.finite.check_later(session.step, number)
        if session.log_now:
            self._fanout.stage_late(LOSS_NAME, number)

    def _accumulate(self, batch: Any, size: int) -> float | Tensor:
        num_samples = len(check_batch(batch))
        total: float | Tensor = 0.0
        for index, micro in enumerate(split(batch, size)):
            if index:
                self._mark(FORWARD)
            weight = len(check_batch(micro)) / num_samples
            total = total + self._forward_backward(micro, weight) * weight
        return total

    def _forward_backward(self, batch: Any, weight: float | None) -> float | Tensor:
        """Forward, loss and backward; `weight` is the microbatch's share of the batch, which its gradient counts."""
        if self._autocast is None:
            outputs = self._forward(batch)
            loss = self._loss(outputs, batch)
        else:
            with self._autocast:
                outputs = self._forward(batch)
                loss = self._loss(outputs, batch)
        if self._is_first or getattr(loss, "ndim", True):  # what is no tensor has none
            _check_scalar(loss)
        if self._after_forward:
            self._call(self._after_forward, outputs)
        if self._after_loss:
            self._call(self._after_loss, loss)
        value: float | Tensor
        if self._on_cpu:
            value = loss.item()
            if not isfinite(value):
                self._parts.finite.found(self._session.step, str(value))
        else:
            value = loss.detach()
        self._mark(BACKWARD)
        scaled = loss if weight is None else loss * weight
        if self._scaler is not None:
            scaled = self._scaler.scale(scaled)
        scaled.backward()  # type: ignore[no-untyped-call]
        return value

    def _optimize(self) -> None:
        """The general case: scaling, callbacks, clipping, several optimizers, schedules."""
        parts, scaler = self._parts, self._scaler
        if scaler is not None and (parts.grad_clip_norm is not None or self._after_backward):
            for optimizer in parts.optimizers:
                scaler.unscale_(optimizer)
        if self._after_backward:
            self._call(self._after_backward)
        if parts.grad_clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parts.model.parameters(), parts.grad_clip_norm)
        for optimizer in parts.optimizers:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        for optimizer in parts.optimizers:
            optimizer.zero_grad()
        for scheduler in parts.schedulers:
            scheduler.step()

    def _call(self, handlers: tuple[Handler, ...], *args: Any) -> None:
        recorder = self._session.recorder
        recorder.enter(CALLBACKS)
        for handler in handlers:
            handler(self._trainer, *args)
        recorder.leave()


def _check_scalar(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise LossError(
            f"the loss is a {type(loss).__name__}, expected a tensor with one number",
            hint="return the tensor itself, not its .item()",
        )
    if loss.ndim != 0:
        raise LossError(
            f"the loss has shape {tuple(loss.shape)}, expected a scalar, shape ()",
            hint="reduce it, for example with .mean()",
        )
    if loss.is_complex():
        raise LossError("the loss is a complex number, which has no minimum", hint="take its .abs() or .real")
    if not loss.requires_grad:
        raise LossError(
            "the loss does not depend on the model's parameters: it has no gradient",
            hint="compute it from the model's outputs, outside torch.no_grad() and without .detach()",
        )
