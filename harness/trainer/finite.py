"""Watches for a loss that is NaN or infinite, without making the device wait.

On a CPU the loss is a number as soon as it is computed, and is looked at before the backward pass. On an accelerator a
flag is copied to pinned memory behind the step's own work and read once it has arrived, a step or two later: asking for
the number at once would stop the host in each step. (The accelerator path has not run on a GPU yet.)
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from harness.errors import ConfigError, LossError

_log = logging.getLogger(__name__)
NanPolicy = Literal["warn", "stop"]


class FiniteLoss:
    """Applies the NaN policy to each step's loss.

    Args:
        policy: `warn` says it (the first time, then every hundredth) and goes on; `stop` raises.
    """

    def __init__(self, policy: str) -> None:
        if policy not in get_args(NanPolicy):
            raise ConfigError(f"nan_policy={policy!r} is not known", hint="give 'warn' or 'stop'")
        self._stop = policy == "stop"
        self._pending: deque[tuple[int, Tensor, Any]] = deque()
        self.num_bad_steps = 0

    def check_later(self, step: int, loss: Tensor) -> None:
        """Look at a loss on an accelerator, shape (), once it has been computed.

        Raises:
            LossError: The policy is `stop` and an earlier loss that has arrived by now is not finite.
        """
        flag = torch.empty((), dtype=torch.bool, pin_memory=True)
        flag.copy_(torch.isfinite(loss), non_blocking=True)
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending.append((step, flag, event))
        while self._pending and self._pending[0][2].query():
            step, flag, _ = self._pending.popleft()
            if not flag.item():
                self.found(step, "not finite")

    def found(self, step: int, value: str) -> None:
        """A loss is not finite: warn or stop.

        Raises:
            LossError: The policy is `stop`.
        """
        self.num_bad_steps += 1
        if self._stop:
            raise LossError(
                f"the loss of step {step} is {value} and nan_policy is 'stop'",
                hint="the weights are those of the step before; look at the batch, lower the learning rate or clip",
            )
        if self.num_bad_steps % 100 == 1:
            _log.warning("the loss of step %d is %s (%d such steps so far)", step, value, self.num_bad_steps)
