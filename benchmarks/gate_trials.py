"""Tries the comparison out: does it find slowdowns that were planted, and does it keep quiet where there are none?

    python benchmarks/gate_trials.py [--equal 30] [--rounds 8] [--output FILE]

Writes one JSON file, which the report reads: a row for each planted regression and the verdicts of all comparisons of
the tree with itself. Takes about an hour. Exit code 1 where a slowdown of 3 µs or more was not found, or more than two
of thirty comparisons of equal sides raised an alarm.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from compare import Compared, compare_sides
from planted import PLANTS, plant
from saved import this_machine
from sides import ROOT, working_tree
from tool import FAILED, FINE, run

from harness.errors import ConfigError

FORMAT = 1
FOLDER = ROOT / "build" / "gate-trials"
OUTPUT = ROOT / "benchmarks" / "results" / "gate.json"
BENCHMARKS = (
    "test_naming.py::test_format_all_fields",
    "test_naming.py::test_generate",
    "test_naming.py::test_parse",
    "test_step.py::test_added_to_a_step[trainer]",
    "test_step.py::test_operators_of_a_step[trainer]",
)
SLOWED = "test_step.py::test_added_to_a_step[trainer]"
"""What all plants make slower."""
COUNTED = "test_step.py::test_operators_of_a_step[trainer]"
"""What counts the operators of the same step."""
MAX_ALARMS = 2 / 30


def main(arguments: list[str]) -> int:
    """The command line."""
    given = _parse(arguments)
    folder = FOLDER / given.name
    tree = working_tree()
    base = plant(None, tree, folder / "base", name="base")
    fixed: dict[str, Any] = {"rounds": given.rounds, "limit_pct": given.max_slowdown}
    options = {**fixed, "steps": given.steps}
    document: dict[str, Any] = {
        "format": FORMAT,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": str(this_machine()),
        "commit": str(tree),
        "benchmarks": list(BENCHMARKS),
        **fixed,
        "planted": [],
        "equal": [],
    }
    for path in given.join:
        _join(document, path)
    if not given.only_equal:
        for edit in [PLANTS[number] for number in given.plant or range(len(PLANTS))]:
            new = plant(edit, base, folder / "new", name="new")
            compared = compare_sides(base, new, BENCHMARKS, folder=folder, **options)
            document["planted"].append({"what": edit.what, "steps": given.steps, **_row(compared)})
            _write(document, given.output)
    for number in range(1, given.equal + 1):
        print(f"equal sides, {number} of {given.equal}", file=sys.stderr, flush=True)
        new = plant(None, base, folder / "new", name="new")
        compared = compare_sides(base, new, BENCHMARKS, folder=folder, **options)
        document["equal"].append({"steps": given.steps, **_row(compared)})
        _write(document, given.output)
    _write(document, given.output)
    found = [row["found"] for row in document["planted"]][1:]
    alarms = sum(row["alarm"] for row in document["equal"])
    print(f"planted: {sum(found)} of {len(found)} found; equal sides: {alarms} alarms in {len(document['equal'])}")
    return FINE if all(found) and alarms <= MAX_ALARMS * len(document["equal"]) else FAILED


def _join(document: dict[str, Any], path: Path) -> None:
    """Add the trials of an earlier file, made with the same tree and options."""
    try:
        other = msgspec.json.decode(path.read_bytes())
        same = all(other[key] == document[key] for key in ("format", "machine", "benchmarks", "rounds", "limit_pct"))
    except (OSError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"--join={path} cannot be read: {type(error).__name__}: {error}") from error
    if not same:
        raise ConfigError(
            f"--join={path} was made with other options or on another machine", hint="repeat those trials"
        )
    document["commit"] = other["commit"]
    for kind in ("planted", "equal"):
        document[kind] += other[kind]


def _row(compared: list[Compared]) -> dict[str, Any]:
    of_slowed = [one for one in compared if one.benchmark in (SLOWED, COUNTED)]
    slowed = next((one for one in of_slowed if one.is_past_limit), of_slowed[0])
    return {
        "alarm": any(one.is_past_limit for one in compared),
        "found": slowed.is_past_limit,
        "figure": slowed.figure,
        "base_us": slowed.base_median,
        "change_us": {"low": slowed.change.low, "mid": slowed.change.mid, "high": slowed.change.high},
        "smallest_seen_us": slowed.smallest_seen,
        "past_limit": [f"{one.benchmark} {one.figure}" for one in compared if one.is_past_limit],
        "different": [f"{one.benchmark} {one.figure}" for one in compared if one.p_different <= 0.05],
    }


def _write(document: dict[str, Any], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--equal", type=int, default=30, help="comparisons of the tree with itself [30]")
    parser.add_argument("--rounds", type=int, default=8, help="pairs of processes in each comparison [8]")
    parser.add_argument("--steps", type=int, default=4000, help="steps in each process [4000]")
    parser.add_argument("--max-slowdown", type=float, default=5.0, help="what is tolerated, in percent [5]")
    parser.add_argument("--plant", type=int, action="append", metavar="N", help="only this one of PLANTS, from 0")
    parser.add_argument("--only-equal", action="store_true", help="plant nothing")
    parser.add_argument(
        "--join", type=Path, action="append", default=[], metavar="FILE", help="add the trials of an earlier output"
    )
    parser.add_argument("--name", default="trial", help="of the folder below build/gate-trials, to run two at once")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="[benchmarks/results/gate.json]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run(main))
