"""What names cost: CPU time of one call, timed by pytest-benchmark on the process's CPU clock.

That clock takes a third of a microsecond to read, so a round is many calls.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from naming_calls import (
    ALL_PATH,
    ALL_VALUES,
    CHECKPOINT_PATH,
    CHECKPOINT_VALUES,
    NAME,
    compile_checkpoint,
    format_all_fields,
    format_checkpoint,
    generate,
    parse_all_fields,
    parse_checkpoint,
    resolve,
    validate,
)

from harness.naming import NameGenerator, validate_run_name
from harness.run.directory import RunDirectory

NUM_RUNS = 10_000
NUM_CLAIMS = 300
"""Each makes a directory: enough for a median, and few beside the runs that are there already."""

ROUNDS = 50
CALLS = 500
"""In each round."""

pytestmark = pytest.mark.benchmark(group="naming", timer=time.process_time)


@pytest.fixture(scope="module")
def crowded_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root with the directories of ten thousand runs; what lies in them plays no part here."""
    root = tmp_path_factory.mktemp("crowded")
    for number in range(NUM_RUNS):
        (root / f"run-{number:06d}").mkdir()
    yield root
    shutil.rmtree(root)  # now: pytest keeps its folders for three sessions, and then takes a minute for this one


def test_generate(benchmark: Any) -> None:
    assert validate_run_name(time_calls(benchmark, generate())).count("-") >= 2


def test_validate(benchmark: Any) -> None:
    assert time_calls(benchmark, validate()) == NAME


def test_resolve_from_the_environment(benchmark: Any) -> None:
    found = time_calls(benchmark, resolve())
    assert (found.name, found.source) == (NAME, "RUN_NAME")


def test_compile_a_checkpoint(benchmark: Any) -> None:
    assert time_calls(benchmark, compile_checkpoint()).format(CHECKPOINT_VALUES) == CHECKPOINT_PATH


def test_format_a_checkpoint(benchmark: Any) -> None:
    assert time_calls(benchmark, format_checkpoint()) == CHECKPOINT_PATH


def test_format_all_fields(benchmark: Any) -> None:
    assert time_calls(benchmark, format_all_fields()) == ALL_PATH


def test_parse(benchmark: Any) -> None:
    # With all fields, as the budgets of formatting and parsing belong together.
    assert time_calls(benchmark, parse_all_fields()) == ALL_VALUES


def test_parse_a_checkpoint(benchmark: Any) -> None:
    assert time_calls(benchmark, parse_checkpoint()) == CHECKPOINT_VALUES


def test_claim(benchmark: Any, tmp_path: Path) -> None:
    claim_new_names(benchmark, tmp_path)


def test_claim_beside_10000_runs(benchmark: Any, crowded_root: Path) -> None:
    claim_new_names(benchmark, crowded_root)


def test_claim_a_generated_name_beside_10000_runs(benchmark: Any, crowded_root: Path) -> None:
    generator = NameGenerator()
    generator.generate()
    time_claims(benchmark, lambda: RunDirectory.claim_generated(crowded_root, generator))


def claim_new_names(benchmark: Any, root: Path) -> None:
    """Time the claim of one given name after the other."""
    names = (f"claimed-{number}" for number in itertools.count())
    time_claims(benchmark, lambda: RunDirectory.claim(root, next(names)))


def time_claims(benchmark: Any, claim: Callable[[], RunDirectory]) -> None:
    """Time claiming a directory and letting go of it."""
    claimed: list[RunDirectory] = []

    def once() -> None:
        directory = claim()
        directory.release()
        claimed.append(directory)

    benchmark.pedantic(once, rounds=NUM_CLAIMS, warmup_rounds=1)
    assert all(directory.path.is_dir() for directory in claimed)
    assert len({directory.run_name for directory in claimed}) == len(claimed)


def time_calls(benchmark: Any, call: Callable[[], Any]) -> Any:
    """Time many calls; returns what one of them returned."""
    return benchmark.pedantic(call, rounds=ROUNDS, iterations=CALLS, warmup_rounds=2)
