"""One call of `steps`: what is iterated, for how long, and how much a batch counts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import ConfigError, DataError
from harness.loop.interval import Interval, Limit
from harness.loop.options import SessionOptions
from harness.units import Duration, DurationUnit

CountFn = Callable[[Any], int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How long to train, and on what."""

    loader: Iterable[Any]
    """Iterated once per epoch."""
    limit: Limit
    """When training is over."""
    batches_per_epoch: int | None
    """None where the loader has no length."""
    log_every: Interval
    """When metrics are taken."""
    save_every: Interval | None
    """When checkpoints are saved."""
    count_samples: CountFn
    """Batch to number of samples."""
    count_tokens: CountFn | None
    """Batch to number of tokens."""

    @property
    def last_step(self) -> int:
        """The step after which training is over; beyond every step where steps are not what is counted."""
        duration = self.limit.duration
        return int(duration.value) if duration.unit is DurationUnit.BATCH else sys.maxsize

    @property
    def step_limit(self) -> Limit | None:
        """The limit, if it has to be asked after each step: neither steps nor epochs need that."""
        counted_elsewhere = self.limit.duration.unit in (DurationUnit.BATCH, DurationUnit.EPOCH)
        return None if counted_elsewhere else self.limit

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run, where that is known."""
        return self.limit.total_steps(self.batches_per_epoch)


def make_plan(
    loader: Iterable[Any],
    max_duration: str | int | Duration,
    options: SessionOptions,
    *,
    get_num_samples: CountFn | None = None,
    get_num_tokens: CountFn | None = None,
) -> Plan:
    """Check the dataloader and the durations.

    Raises:
        ConfigError: The loader cannot be iterated, or a duration cannot be counted.
        DataError: The loader has length 0, or cannot tell its length.
    """
    length = check_loader(loader, option="train_dataloader")
    duration = Duration.parse(max_duration, option="max_duration")
    if duration.unit is DurationUnit.TOKEN and get_num_tokens is None:
        raise ConfigError(
            f"max_duration={duration} counts tokens, and nothing says how many a batch has",
            hint="give get_num_tokens=lambda batch: batch['input_ids'].numel()",
        )
    save = options.save_every
    return Plan(
        loader=loader,
        limit=Limit(duration),
        batches_per_epoch=length,
        log_every=Interval(options.log_every, duration, option="log_interval", batches_per_epoch=length),
        save_every=None if save is None else Interval(save, duration, option="save_interval", batches_per_epoch=length),
        count_samples=get_num_samples or count_samples,
        count_tokens=get_num_tokens,
    )


def check_loader(loader: Iterable[Any], *, option: str) -> int | None:
    """See that a dataloader can be iterated and is not empty, as far as it says.

    Returns:
        Its length; None where it has none.

    Raises:
        ConfigError: It cannot be iterated.
        DataError: Its length is 0, or asking for it raises.
    """
    if not isinstance(loader, Iterable):
        raise ConfigError(
            f"{option} is a {type(loader).__name__}, which cannot be iterated",
            hint="give a torch DataLoader, or any iterable that can be iterated once per epoch",
        )
    try:
        length = len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None
    except Exception as error:
        raise DataError(f"the length of {option} cannot be had: {type(error).__name__}: {error}") from error
    if length == 0:
        raise DataError(
            f"{option} is empty: its length is 0",
            hint="check the dataset's size, and drop_last with a batch size above it",
        )
    return length


def count_samples(batch: Any) -> int:
    """Size of the first dimension of the first array in the batch; 0 when it holds none."""
    if type(batch) in (tuple, list) and batch:  # nearly always: spares the look-ups below
        batch = batch[0]
    shape = getattr(batch, "shape", None)
    while shape is None:
        if isinstance(batch, (tuple, list)) and batch:
            batch = batch[0]
        elif isinstance(batch, Mapping) and batch:
            batch = next(iter(batch.values()))
        else:
            return 0
        shape = getattr(batch, "shape", None)
    return int(shape[0]) if shape else 0
