"""The resolved configuration, as plain data for the manifest and the loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.trainer.train_step import StepParts

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

_PLAIN = (bool, int, float, str, type(None))


def describe(
    parts: StepParts, schedulers: Sequence[LRScheduler], options: Mapping[str, Any], **settings: Any
) -> dict[str, object]:
    """What is trained, with what, for how long; names and numbers only."""
    return {
        **settings,
        "microbatch_size": parts.microbatch_size,
        "grad_clip_norm": parts.grad_clip_norm,
        "model": {
            "class": type(parts.model).__qualname__,
            "num_parameters": sum(parameter.numel() for parameter in parts.model.parameters()),
        },
        "optimizers": [
            {"class": type(optimizer).__qualname__, **_plain(optimizer.defaults)} for optimizer in parts.optimizers
        ],
        "schedulers": [type(scheduler).__qualname__ for scheduler in schedulers],
        "loggers": [
            spec if isinstance(spec, str) else str(getattr(spec, "name", spec)) for spec in options.get("loggers", ())
        ],
        **{
            name: value if isinstance(value, _PLAIN) else str(value)
            for name, value in options.items()
            if name not in ("loggers", "profile")
        },
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if isinstance(value, (*_PLAIN, tuple))
    }
