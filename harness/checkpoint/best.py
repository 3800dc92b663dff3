"""Which checkpoints are the best by a metric: those that rotation leaves alone, whatever their age."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.checkpoint.index import IndexEntry
from harness.errors import ConfigError

_MODES = ("min", "max")
_EXPECTED = "METRIC:min or METRIC:max, and how many to keep if more than one: loss/eval/total:min:3"


@dataclass(frozen=True, slots=True)
class SaveBest:
    """What makes a checkpoint one of the best. A value that is not finite never does.

    Raises:
        ConfigError: The mode is neither `min` nor `max`, or `k` is below 1.
    """

    metric: str
    """The name a metric is logged under, such as `loss/eval/total`."""
    mode: str
    """`min` where less is better, else `max`."""
    k: int = 1
    """How many are kept."""

    def __post_init__(self) -> None:
        shown = f"save_best={self.metric}:{self.mode}:{self.k}"
        if not self.metric or self.mode not in _MODES:
            raise ConfigError(f"{shown} does not say whether less or more is better", hint=f"give {_EXPECTED}")
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise ConfigError(f"{shown} keeps no checkpoint", hint=f"give {_EXPECTED}")

    @classmethod
    def parse(cls, text: str | SaveBest) -> SaveBest:
        """Read `loss/eval/total:min` or `metrics/eval/accuracy:max:3`.

        Raises:
            ConfigError: It is something else.
        """
        if isinstance(text, SaveBest):
            return text
        if not isinstance(text, str):
            raise ConfigError(f"save_best={text!r} is a {type(text).__name__}", hint=f"give {_EXPECTED}")
        parts = [part.strip() for part in text.split(":")]
        if len(parts) not in (2, 3) or (len(parts) == 3 and not (parts[2].isascii() and parts[2].isdecimal())):
            raise ConfigError(f"save_best={text!r} is not understood", hint=f"give {_EXPECTED}")
        return cls(parts[0], parts[1], int(parts[2]) if len(parts) == 3 else 1)

    def ranked(self, index: Mapping[str, IndexEntry]) -> list[str]:
        """The names of the best, best first, at most `k`. Of equal ones the earlier is better."""
        sign = 1 if self.mode == "min" else -1
        measured = [
            (sign * entry.value, entry.step, name)
            for name, entry in index.items()
            if entry.metric == self.metric and entry.value is not None and math.isfinite(entry.value)
        ]
        return [name for _, _, name in sorted(measured)[: self.k]]


class BestSoFar:
    """The best values of a run, those of earlier attempts among them.

    Args:
        wanted: What is better.
        index: The side manifest when the attempt begins.
    """

    def __init__(self, wanted: SaveBest, index: Mapping[str, IndexEntry]) -> None:
        self.metric = wanted.metric
        self._wanted = wanted
        values = [index[name].value for name in wanted.ranked(index)]
        self._values = [value for value in values if value is not None]
        self.is_known = bool(self._values)
        """Whether the metric was ever there."""

    def take(self, value: float) -> bool:
        """Note a value; whether it is one of the best, so that its checkpoint is worth saving."""
        self.is_known = True
        if not math.isfinite(value):
            return False
        ranked = sorted([*self._values, value], reverse=self._wanted.mode == "max")[: self._wanted.k]
        is_best = ranked != self._values
        self._values = ranked
        return is_best
