"""What to capture and when, as a small file people can read, share and change.

A recipe is one TOML file. The ones that come with the package are known by name (`quick`, `steady`, …); any
other is given by its path. Everything is checked when it is loaded: a typo in a key must not cost a night of
training.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.capture.options import Budget, ProfileOptions, SystemOptions
from harness.capture.schedule import Schedule
from harness.errors import RecipeError

RANK_RULES = ("all", "first", "one-per-node")
ALL_RANKS_UP_TO = 8
"""Without a rule every rank of a run of up to this many is captured; beyond it rank 0 and one a node."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What to capture and when.

    Example:
        >>> recipe = Recipe(name="mine", schedule=Schedule(wait=20, warmup=2, active=4, repeat=2))
        >>> [window.first_active for window in recipe.schedule.windows()]
        [23, 49]

    Raises:
        RecipeError: A value breaks the rules; the message has the key, the value and what was expected.
    """

    name: str
    """Letters, digits, `.`, `_`, `-`; of a file without the key `name` its name without `.toml`."""
    description: str = ""
    """One or two sentences for people, shown by `harness profiles`."""
    ranks: str | tuple[int, ...] | None = None
    """`all`, `first`, `one-per-node` or a list; None: all of up to 8 ranks, else rank 0 and one a node."""
    schedule: Schedule | None = None
    """When; None captures nothing."""
    profile: ProfileOptions = field(default_factory=ProfileOptions)
    """What."""
    budget: Budget = field(default_factory=Budget)
    """How much at most."""
    system: SystemOptions = field(default_factory=SystemOptions)
    """How often system metrics are sampled; counts without any window too."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise RecipeError(
                f"name = {self.name!r} is no name for a recipe",
                hint="use up to 64 letters, digits, `.`, `_`, `-`, the first a letter, a digit or `_`",
            )
        if not isinstance(self.description, str):
            raise RecipeError(f"description = {self.description!r} is no text")
        object.__setattr__(self, "ranks", _checked_ranks(self.ranks))
        for table, part in _TABLES.items():
            value = getattr(self, table)
            if not isinstance(value, part) and not (value is None and table == "schedule"):
                raise RecipeError(f"{table} = {value!r} is no {part.__name__}")

    @classmethod
    def load(cls, spec: str | Path | Recipe | None) -> Recipe:
        """Find a recipe and check it.

        Args:
            spec: A known name; a path (a Path, or a text that contains `/` or ends in `.toml`); a Recipe,
                which is returned as it is; None for `off`.

        Raises:
            RecipeError: No such name or file, no valid TOML, an unknown key, or a value against the rules.
        """
        if isinstance(spec, Recipe):
            return spec
        if spec is None:
            return cls.load("off")
        if isinstance(spec, Path) or "/" in spec or spec.endswith(".toml"):
            return _read(Path(spec))
        known = known_recipes()
        if spec not in known:
            near = difflib.get_close_matches(spec, known, n=1)
            raise RecipeError(
                f"profile={spec!r} is no known recipe; known are {', '.join(known)}",
                hint=f"did you mean {near[0]!r}?" if near else "give one of these names, or the path of a .toml file",
            )
        return _read(known[spec])

    def captures_rank(self, *, rank: int, local_rank: int, world_size: int) -> bool:
        """Whether this recipe captures the given rank."""
        if isinstance(self.ranks, tuple):
            return rank in self.ranks
        rule = self.ranks or ("all" if world_size <= ALL_RANKS_UP_TO else "one-per-node")
        if rule == "one-per-node":
            return rank == 0 or local_rank == 0
        return rule == "all" or rank == 0

    def check_reachable(self, total_steps: int | None) -> str | None:
        """A warning where no window can be completed within `total_steps` steps, with the numbers; else None.

        Args:
            total_steps: Length of the run; None where it is not known, which is never warned about.
        """
        if self.schedule is None or total_steps is None:
            return None
        window = next(self.schedule.windows())
        if window.last_active <= total_steps:
            return None
        plan = self.schedule
        return (
            f"recipe {self.name!r} records nothing whole in {total_steps} steps: its first window ends with "
            f"step {window.last_active} (skip_first {plan.skip_first} + wait {plan.wait} + "
            f"warmup {plan.warmup} + active {plan.active})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, tables and keys as in the file, defaults spelled out."""
        data: dict[str, Any] = {"name": self.name, "description": self.description}
        if self.ranks is not None:
            data["ranks"] = list(self.ranks) if isinstance(self.ranks, tuple) else self.ranks
        for table in _TABLES:
            part = getattr(self, table)
            if part is not None:
                data[table] = {f.name: _plain(getattr(part, f.name)) for f in fields(part)}
        return data

    def to_toml(self) -> str:
        """The recipe as a TOML file that loads to an equal recipe."""
        top = self.to_dict()
        tables = {key: top.pop(key) for key in _TABLES if key in top}
        blocks = ["\n".join(f"{key} = {_toml_value(value)}" for key, value in top.items())]
        for table, values in tables.items():
            lines = [f"[{table}]", *(f"{key} = {_toml_value(value)}" for key, value in values.items())]
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks) + "\n"


_TABLES: dict[str, Any] = {
    "schedule": Schedule,
    "profile": ProfileOptions,
    "budget": Budget,
    "system": SystemOptions,
}


def known_recipes() -> dict[str, Path]:
    """The recipes that come with the package: name to file, sorted by name.

    Raises:
        RecipeError: The installation has no recipes.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "profiles", package.parent / "profiles"):  # of the wheel, of a checkout
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    raise RecipeError(
        f"no recipes at {package / 'profiles'}",
        hint="the installation is not complete: install the package again",
    )


def _read(path: Path) -> Recipe:
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except OSError as error:
        raise RecipeError(
            f"recipe {path} cannot be read: {error.strerror}",
            hint=f"known recipes are {', '.join(known_recipes())}",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"recipe {path} is no valid TOML: {error}") from error
    try:
        return _from_dict(data, default_name=path.stem)
    except RecipeError as error:
        raise RecipeError(f"recipe {path}: {error.message}", hint=error.hint) from None


def _from_dict(data: Mapping[str, Any], *, default_name: str) -> Recipe:
    _check_keys(data, Recipe, prefix="")
    values: dict[str, Any] = {"name": default_name, **data}
    for table, part in _TABLES.items():
        if table not in data:
            continue
        if not isinstance(data[table], dict):
            raise RecipeError(f"{table} = {data[table]!r} is no table", hint=f"write its keys below [{table}]")
        _check_keys(data[table], part, prefix=f"{table}.")
        if part is Schedule and "active" not in data[table]:
            raise RecipeError("schedule.active is missing; expected the number of steps to record in a window")
        values[table] = part(**data[table])
    return Recipe(**values)


def _check_keys(data: Mapping[str, Any], part: Any, *, prefix: str) -> None:
    allowed = [f.name for f in fields(part)]
    for key in data:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            raise RecipeError(
                f"unknown key {prefix}{key}; allowed are {', '.join(allowed)}",
                hint=f"did you mean {prefix}{near[0]}?" if near else None,
            )


def _checked_ranks(value: object) -> str | tuple[int, ...] | None:
    if value is None or (isinstance(value, str) and value in RANK_RULES):
        return value
    ranks = value if isinstance(value, list | tuple) else ()
    if ranks and all(isinstance(rank, int) and not isinstance(rank, bool) and rank >= 0 for rank in ranks):
        return tuple(sorted(set(ranks)))
    raise RecipeError(f"ranks = {value!r} is neither one of {', '.join(RANK_RULES)} nor a list of ranks such as [0, 8]")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    # JSON's escapes are TOML's, except that TOML also wants DEL escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
