"""Mixed precision: the autocast context and, for half precision, the gradient scaler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from harness.errors import ConfigError

PrecisionName = Literal["fp32", "amp_bf16", "amp_fp16"]
"""Composer's words."""


@dataclass(frozen=True, slots=True)
class Precision:
    """How forward and loss are computed, and whether gradients are scaled."""

    autocast: torch.autocast | None
    """Can be entered again and again; None computes in the model's own precision."""
    scaler: torch.amp.GradScaler | None
    """Only for `amp_fp16`, whose gradients underflow without it."""

    @classmethod
    def named(cls, name: str, device: torch.device) -> Precision:
        """Precision by Composer's name.

        Raises:
            ConfigError: The name is not known.
        """
        if name == "fp32":
            return cls(autocast=None, scaler=None)
        if name == "amp_bf16":
            return cls(autocast=torch.autocast(device.type, dtype=torch.bfloat16), scaler=None)
        if name == "amp_fp16":
            return cls(
                autocast=torch.autocast(device.type, dtype=torch.float16), scaler=torch.amp.GradScaler(device.type)
            )
        raise ConfigError(f"precision={name!r} is not known", hint=f"give one of {', '.join(get_args(PrecisionName))}")
