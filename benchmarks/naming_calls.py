"""The naming calls that are measured, each ready to be made again and again.

python benchmarks/naming_calls.py CALL NUMBER makes one of them so many times: for a counter of instructions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from harness.naming import FIELDS, LOCAL_FIELDS, NameGenerator, Template, resolve_run_name, validate_run_name

NAME = "1657932618-infrared-ferret"
CHECKPOINT = "{run_name}/checkpoints/ep{epoch}-ba{batch:06d}-rank{rank}.pt"
CHECKPOINT_VALUES: dict[str, int | str] = {"run_name": NAME, "epoch": 1, "batch": 57, "rank": 0}
CHECKPOINT_PATH = f"{NAME}/checkpoints/ep1-ba000057-rank0.pt"
_COUNTS = sorted(LOCAL_FIELDS - {"run_name", "hostname"})
ALL_FIELDS = "{run_name}/{hostname}/" + "-".join(f"{{{name}}}" for name in _COUNTS)
ALL_VALUES = {name: FIELDS[name].example for name in LOCAL_FIELDS}
ALL_PATH = f"{NAME}/{ALL_VALUES['hostname']}/" + "-".join(str(ALL_VALUES[name]) for name in _COUNTS)


def generate() -> Callable[[], str]:
    """A new name; the word lists are built before."""
    generator = NameGenerator()
    generator.generate()
    return generator.generate


def validate() -> Callable[[], str]:
    """A name that is fine."""
    return partial(validate_run_name, NAME)


def resolve() -> Callable[[], Any]:
    """A name from the last of the environment variables that are looked at."""
    return partial(resolve_run_name, None, {"RUN_NAME": NAME})


def compile_checkpoint() -> Callable[[], Template]:
    """A checkpoint's template."""
    return partial(Template.compile, CHECKPOINT, option="save_filename")


def format_checkpoint() -> Callable[[], str]:
    """A checkpoint's path."""
    return partial(compile_checkpoint()().format, CHECKPOINT_VALUES)


def format_all_fields() -> Callable[[], str]:
    """A path with every field."""
    return partial(Template.compile(ALL_FIELDS, option="save_filename").format, ALL_VALUES)


def parse_checkpoint() -> Callable[[], Any]:
    """A checkpoint's path."""
    return partial(compile_checkpoint()().parse, CHECKPOINT_PATH)


def parse_all_fields() -> Callable[[], Any]:
    """A path with every field."""
    return partial(Template.compile(ALL_FIELDS, option="save_filename").parse, ALL_PATH)


CALLS: dict[str, Callable[[], Callable[[], Any]]] = {
    "generate": generate,
    "validate": validate,
    "resolve": resolve,
    "compile-checkpoint": compile_checkpoint,
    "format-checkpoint": format_checkpoint,
    "format-all-fields": format_all_fields,
    "parse-checkpoint": parse_checkpoint,
    "parse-all-fields": parse_all_fields,
}


def main(name: str, number: str) -> None:
    """Make a call so many times."""
    call = CALLS[name]()
    for _ in range(int(number)):
        call()


if __name__ == "__main__":
    main(*sys.argv[1:])
