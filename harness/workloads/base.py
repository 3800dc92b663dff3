"""What a training consists of, apart from how long it runs and what is recorded of it.

This module loads no torch, so that a workload's options can be listed and checked quickly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, WorkloadError
from harness.units import Duration

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

_CALLABLES = ("optimizer", "loss_fn", "scheduler", "get_num_samples", "get_num_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A model, its data and how it learns: what a `build` function returns.

    `--seed` (the Trainer's `seed`) is set before `build` is called, so weights drawn from torch's global
    generator repeat. `build` must not seed anything itself.

    Raises:
        WorkloadError: A part is of a kind that cannot work.
    """

    model: nn.Module
    """Called with `batch[0]` of a tuple or list, with the keys of a dict that its `forward` accepts, or with
    the batch itself."""
    train_dataloader: Iterable[Any]
    """Yields batches: a tensor, or a tuple, list or dict of tensors; the first dimension is the sample."""
    optimizer: Callable[[nn.Module], Optimizer]
    """Makes the optimizer for the model."""
    loss_fn: Callable[[Any, Any], Tensor] | None = None
    """The loss from (outputs, batch), a scalar; absent: the model's method `loss(outputs, batch)`."""
    scheduler: Callable[[Optimizer], LRScheduler] | None = None
    """Makes the learning rate's scheduler, which is stepped after every optimizer step."""
    eval_dataloader: Iterable[Any] | None = None
    """Batches the model never trains on."""
    metrics: Mapping[str, Callable[[Any, Any], Tensor]] = field(default_factory=dict)
    """For evaluation, by name: from (outputs, batch) the mean over the batch's samples, a scalar."""
    max_duration: str = "1ep"
    """How long to train unless the user says otherwise."""
    get_num_samples: Callable[[Any], int] | None = None
    """Samples in a batch; absent: the first dimension of its first tensor."""
    get_num_tokens: Callable[[Any], int] | None = None
    """Tokens in a batch; absent: tokens are not counted."""
    grad_clip_norm: float | None = None
    """Gradients are scaled down to this norm; absent: left alone."""
    name: str = ""
    """For people; the loader fills it in with what the user asked for."""
    description: str = ""
    """One line for people."""

    def __post_init__(self) -> None:
        Duration.parse(self.max_duration, option="Workload.max_duration")
        if not callable(getattr(self.model, "parameters", None)):
            raise WorkloadError(f"Workload.model is a {type(self.model).__name__}, expected a torch.nn.Module")
        if not callable(self.optimizer):
            raise WorkloadError(
                f"Workload.optimizer is a {type(self.optimizer).__name__}, expected a function that makes it",
                hint="give optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3)",
            )
        if self.loss_fn is None and not callable(getattr(self.model, "loss", None)):
            raise WorkloadError(
                f"there is no loss: Workload.loss_fn is not given and {type(self.model).__name__} has no "
                "method loss(outputs, batch)",
                hint="give loss_fn=lambda outputs, batch: F.cross_entropy(outputs, batch[1])",
            )
        self._check_callables()
        clip = self.grad_clip_norm
        if clip is not None and not (math.isfinite(clip) and clip > 0):
            raise WorkloadError(f"Workload.grad_clip_norm={clip!r}, expected a number above zero or None")

    def make_optimizer(self) -> Optimizer:
        """The optimizer for the model, where that is now.

        Raises:
            WorkloadError: The function raised, which is the cause, or returned something else.
        """
        made: Optimizer = _make("optimizer", self.optimizer, self.model, needed=("param_groups", "step"))
        return made

    def make_scheduler(self, optimizer: Optimizer) -> LRScheduler | None:
        """The learning rate's scheduler; None where the workload has none.

        Raises:
            WorkloadError: The function raised, which is the cause, or returned something else.
        """
        if self.scheduler is None:
            return None
        made: LRScheduler = _make("scheduler", self.scheduler, optimizer, needed=("state_dict", "step"))
        return made

    def _check_callables(self) -> None:
        parts = {name: getattr(self, name) for name in _CALLABLES}
        parts.update({f"metrics[{name!r}]": metric for name, metric in self.metrics.items()})
        for name, part in parts.items():
            if part is not None and not callable(part):
                kind = type(part).__name__
                raise WorkloadError(f"Workload.{name} is a {kind}, expected a function or None")


def _make(part: str, function: Callable[[Any], Any], argument: Any, *, needed: Sequence[str]) -> Any:
    try:
        made = function(argument)
    except HarnessError:
        raise
    except Exception as error:
        raise WorkloadError(f"Workload.{part} raised {type(error).__name__}: {error}") from error
    if any(not hasattr(made, name) for name in needed):
        raise WorkloadError(
            f"Workload.{part} returned a {type(made).__name__}, which is no {part}", hint=f"return the {part} it makes"
        )
    return made
