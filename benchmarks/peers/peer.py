"""What the module of each framework is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from harness.bench.interleaved import TrainedParts

NEVER = 1_000_000_000
"""Steps before the first profiled one: the window stays closed."""


class SteppedDataLoader(DataLoader[Any]):
    """Batches that pass for torch's DataLoader, as some frameworks take nothing else.

    Its length is known, which spares frameworks a look ahead. Iterating over it costs nothing beyond the batches:
    torch's own fetching is in neither of the two loops.

    Args:
        batches: A BlockLoader, or a generator around one.
        num_batches: How many there are.
    """

    def __init__(self, batches: Iterable[Any], num_batches: int) -> None:
        super().__init__(range(num_batches), batch_size=1)  # type: ignore[arg-type]
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return iter(self._batches)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What a framework's module trains, and with which of its own features on."""

    case: str
    """One of `cells.CASES`."""
    parts: TrainedParts
    """What to train."""
    loader: SteppedDataLoader
    """Ends by itself, after one epoch."""
    num_steps: int
    """Batches of `loader`, an optimizer step for each."""
    folder: Path
    """Empty, for files; removed afterwards."""


Train = Callable[[Setup], int | None]
"""Each module has `train`: it runs the loop and closes what writes. Returns the CPU ns of threads that work by the
clock, as `BlockLoader.result` wants them; None for none."""
