"""How far a run has come: counts of epochs, steps, samples and tokens, and the time they took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter_ns

from harness.errors import CheckpointError
from harness.units import NS_PER_S, DurationUnit

_COUNTS = ("epoch", "batch", "batch_in_epoch", "sample", "sample_in_epoch", "token", "token_in_epoch")


class Timestamp:
    """Counts for the whole run, earlier attempts included. Composer's words.

    `batch` counts finished optimizer steps, `epoch` finished epochs. `sample` and `token` count what the dataloader
    gave on this rank.
    """

    __slots__ = (*_COUNTS, "_earlier_ns", "_epoch_start_ns", "_start_ns", "last_batch_ns")

    def __init__(self) -> None:
        self.epoch = 0
        self.batch = 0
        self.batch_in_epoch = 0
        self.sample = 0
        self.sample_in_epoch = 0
        self.token = 0
        self.token_in_epoch = 0
        self._earlier_ns = 0
        self.last_batch_ns: Callable[[], int] = lambda: 0
        """Tells how long the last step took. Asked for when a name is formatted, so that the step need not note it."""
        self._start_ns = self._epoch_start_ns = perf_counter_ns()

    def start_clock(self) -> None:
        """Training starts now: wall clock times count from here, on top of earlier attempts'."""
        self._start_ns = self._epoch_start_ns = perf_counter_ns()

    def end_batch(self, num_samples: int, num_tokens: int) -> None:
        """One step is done."""
        self.batch += 1
        self.batch_in_epoch += 1
        self.sample += num_samples
        self.sample_in_epoch += num_samples
        if num_tokens:
            self.token += num_tokens
            self.token_in_epoch += num_tokens

    def end_epoch(self) -> None:
        """One pass over the dataloader is done."""
        self.epoch += 1
        self.restart_epoch()

    def restart_epoch(self) -> None:
        """The epoch in progress begins anew."""
        self.batch_in_epoch = self.sample_in_epoch = self.token_in_epoch = 0
        self._epoch_start_ns = perf_counter_ns()

    @property
    def total_wct_ns(self) -> int:
        """Wall clock time of training, over all attempts."""
        return self._earlier_ns + perf_counter_ns() - self._start_ns

    def value(self, unit: DurationUnit) -> int:
        """The count in a duration's unit; nanoseconds for times."""
        if unit is DurationUnit.BATCH:
            return self.batch
        if unit is DurationUnit.EPOCH:
            return self.epoch
        if unit is DurationUnit.SAMPLE:
            return self.sample
        if unit is DurationUnit.TOKEN:
            return self.token
        return self.total_wct_ns

    def fields(self) -> dict[str, int]:
        """The counts as template fields; wall clock times in whole seconds."""
        now_ns = perf_counter_ns()
        fields = {name: getattr(self, name) for name in _COUNTS}
        fields["step"] = self.batch
        fields["total_wct"] = self.total_wct_ns // NS_PER_S
        fields["epoch_wct"] = (now_ns - self._epoch_start_ns) // NS_PER_S
        fields["batch_wct"] = self.last_batch_ns() // NS_PER_S
        return fields

    def state_dict(self) -> dict[str, int]:
        """Counts and time, as plain integers."""
        return {**{name: getattr(self, name) for name in _COUNTS}, "total_wct_ns": self.total_wct_ns}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from saved counts.

        Raises:
            CheckpointError: A count is missing.
        """
        missing = [name for name in (*_COUNTS, "total_wct_ns") if name not in state]
        if missing:
            raise CheckpointError(f"the checkpoint's timestamp lacks {', '.join(missing)}")
        for name in _COUNTS:
            setattr(self, name, int(state[name]))
        self._earlier_ns = int(state["total_wct_ns"])
        self.start_clock()
