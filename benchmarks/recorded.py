"""Figures that were measured elsewhere (in a fresh process, as a difference) as rounds of pytest-benchmark.

pytest-benchmark times a call. What the harness adds to a step is a difference of two times inside another process, so
the clock here is not the wall's: each round moves it by the figure that the round measured. The saved JSON then holds
one figure per process, in seconds, and `pytest-benchmark compare` works on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "instructions": 1e-9, "operators": 1e-9}
"""What one of a unit moves the clock by. pytest-benchmark knows seconds only: what is counted stands as nanoseconds."""
_now_s = 0.0


def clock() -> float:
    """Seconds on the clock that `record` moves: for `@pytest.mark.benchmark(timer=clock)`."""
    return _now_s


def record(
    benchmark: Any, measure: Callable[[], Mapping[str, float]], *, value: str, rounds: int
) -> dict[str, list[float]]:
    """Measure some times and save the figures.

    Args:
        benchmark: The fixture, of a test marked with `timer=clock`.
        measure: Gives figures by name; a name ends in its unit (`total_us`, `written_bytes`).
        value: The figure that stands for the benchmark, in a unit of `SECONDS`.
        rounds: How often to measure: as a rule the number of processes.

    Returns:
        All figures by name, one per round; also in `extra_info["values"]` of the saved JSON.
    """
    values: dict[str, list[float]] = {}
    seconds = SECONDS[value.rpartition("_")[2]]

    def once() -> None:
        global _now_s
        figures = measure()
        for name, figure in figures.items():
            values.setdefault(name, []).append(round(float(figure), 4))
        _now_s += figures[value] * seconds

    benchmark.pedantic(once, rounds=rounds, iterations=1)
    benchmark.extra_info.update(value=value, values=values)
    return values
