"""Budgets: what the harness may cost, and whether a measurement keeps to it."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import msgspec
from figures import is_counted
from saved import Saved

from harness.errors import ConfigError
from harness.intervals import Interval, difference_interval

DEFAULT_PATH = Path(__file__).with_name("budgets.toml")
_Value = TypeVar("_Value")


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One limit."""

    what: str
    """What it holds, in words for the report."""
    benchmark: str
    """Name, as `test_step.py::test_added_to_a_step[session]`."""
    figure: str
    """Which of its figures."""
    limit: float
    """What the median may be, in the figure's unit."""
    minus: str | None = None
    """Another benchmark whose figure is subtracted."""
    short: bool = False
    """Whether the short form holds it too."""
    short_extra: float = 0.0
    """What the short form allows above `short_factor` times the limit, in the figure's unit."""

    why: str = ""
    """What keeps a limit above what was first asked for."""

    def names(self) -> tuple[str, ...]:
        """The benchmarks it needs."""
        return (self.benchmark,) if self.minus is None else (self.benchmark, self.minus)


class Budgets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A budget file."""

    short_factor: float
    """What the short form multiplies each limit with."""
    budget: tuple[Budget, ...]
    """In the file's order."""

    def held(self, *, short: bool) -> tuple[Budget, ...]:
        """The budgets of the full or the short form."""
        return tuple(budget for budget in self.budget if budget.short or not short)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A budget and what was measured."""

    budget: Budget
    """What may be."""
    interval: Interval
    """What is."""
    limit: float
    """The budget's, or the wider one of the short form."""

    @property
    def is_over(self) -> bool:
        """Whether the budget is broken: the median is what counts, in both forms."""
        return self.interval.mid > self.limit

    @property
    def verdict(self) -> str:
        """In words, with what the interval says about it."""
        exact = is_counted(self.budget.figure)
        if self.is_over:
            return "OVER" if exact or self.interval.low > self.limit else "OVER, not surely"
        return "ok" if exact or self.interval.high <= self.limit else "ok, not surely"


def read_budgets(path: Path = DEFAULT_PATH) -> Budgets:
    """Read a budget file.

    Raises:
        ConfigError: It cannot be read, has a wrong key or value, or the same budget twice.
    """
    hint = f"{DEFAULT_PATH.name} explains the keys"
    try:
        budgets = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Budgets)
    except OSError as error:
        raise ConfigError(
            f"--budgets={path} cannot be read: {error.strerror}", hint="give a file of budgets"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"--budgets={path} is no budget file: {error}", hint=hint) from error
    if not budgets.budget:
        raise ConfigError(f"--budgets={path} holds no [[budget]]; expected at least one", hint=hint)
    if budgets.short_factor < 1:
        raise ConfigError(f"{path}: short_factor={budgets.short_factor:g}; expected 1 or more", hint=hint)
    _check_each(path, budgets.budget)
    return budgets


def _check_each(path: Path, budgets: Iterable[Budget]) -> None:
    seen: set[tuple[str, ...]] = set()
    for budget in budgets:
        key = (budget.figure, *budget.names())
        if key in seen:
            raise ConfigError(f"{path} has two budgets for {budget.figure} of {budget.benchmark}", hint="keep one")
        if not budget.limit > 0 or budget.short_extra < 0:
            raise ConfigError(
                f"{path}: the budget for {budget.figure} of {budget.benchmark} has limit={budget.limit:g} and "
                f"short_extra={budget.short_extra:g}; expected a limit above 0 and an extra of 0 or more",
                hint="both are in the unit the figure's name ends in",
            )
        seen.add(key)


def judge(saved: Saved, budgets: Budgets, *, short: bool = False) -> list[Judged]:
    """Hold every budget against a saved file.

    Raises:
        ConfigError: A budget names a benchmark or figure that the file does not have.
    """
    return [
        judge_one(saved, budget, short_factor=budgets.short_factor if short else None)
        for budget in budgets.held(short=short)
    ]


def judge_one(saved: Saved, budget: Budget, *, short_factor: float | None = None) -> Judged:
    """Hold one budget against a saved file; with a factor in the short form."""
    figures = [_values(saved, name, budget.figure) for name in budget.names()]
    interval = (
        saved.benchmarks[budget.benchmark].interval(budget.figure)
        if budget.minus is None
        else difference_interval(figures[1], figures[0])
    )
    limit = budget.limit
    if short_factor is not None and not is_counted(budget.figure):
        limit = limit * short_factor + budget.short_extra
    return Judged(budget=budget, interval=interval, limit=limit)


def is_measured(saved: Saved, budget: Budget) -> bool:
    """Whether the file has the benchmarks that a budget needs."""
    return all(name in saved.benchmarks for name in budget.names())


def _values(saved: Saved, name: str, figure: str) -> list[float]:
    benchmark = _find(saved.benchmarks, name, f"{saved.path} has no benchmark {name!r}, which a budget names")
    return list(
        _find(benchmark.values, figure, f"{name} has no figure {figure!r} in {saved.path}, which a budget names")
    )


def _find(known: Mapping[str, _Value], name: str, message: str) -> _Value:
    if name in known:
        return known[name]
    raise ConfigError(message, hint=_nearest(name, known) + "mend the budget file, or measure the whole suite")


def _nearest(name: str, known: Collection[str]) -> str:
    match = get_close_matches(name, known, n=1, cutoff=0.4)
    return f"the nearest there is: {match[0]}; " if match else f"there are: {', '.join(sorted(known))}; "
