"""Watches for a loss that is NaN or infinite, without making the device wait.

On a CPU the loss is a number as soon as it is computed, and is looked at before the backward pass. On an accelerator
it is looked at once it has arrived, a step or two later: asking for it at once would stop the host in each step.
"""

from __future__ import annotations

import logging
from collections import deque
from math import isfinite
from typing import Literal, get_args

from harness.errors import ConfigError, LossError
from harness.loggers.late import LateNumber

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
        self._pending: deque[tuple[int, LateNumber]] = deque()
        self._stopped_by: LossError | None = None
        self.num_bad_steps = 0

    def check_later(self, step: int, loss: LateNumber) -> None:
        """Look at the loss of a step on an accelerator once it has arrived.

        Raises:
            LossError: The policy is `stop` and an earlier loss that has arrived by now is not finite.
        """
        self._pending.append((step, loss))
        while self._pending and self._pending[0][1].arrived:
            self._read_first()

    def settle(self) -> None:
        """Look at all losses that are still on their way; waits for the device. To be called before weights are kept.

        Raises:
            LossError: The policy is `stop` and one is not finite, or one that arrived before was not.
        """
        while self._pending:
            self._read_first()
        if self._stopped_by is not None:
            raise self._stopped_by

    def _read_first(self) -> None:
        step, loss = self._pending.popleft()
        value = loss.value()
        if isfinite(value):
            return
        try:
            self.found(step, str(value), hint="training went on until it was seen: resume from the last checkpoint")
        except LossError as error:
            self._stopped_by = error
            raise

    def found(self, step: int, value: str, *, hint: str = "the weights are those of the step before") -> None:
        """A loss is not finite: warn or stop.

        Raises:
            LossError: The policy is `stop`.
        """
        self.num_bad_steps += 1
        if self._stop:
            raise LossError(
                f"the loss of step {step} is {value} and nan_policy is 'stop'",
                hint=f"{hint}; look at the batch, lower the learning rate or clip",
            )
        if self.num_bad_steps % 100 == 1:
            _log.warning("the loss of step %d is %s (%d such steps so far)", step, value, self.num_bad_steps)
