"""Says whether the working tree is slower than a revision: both sides in turns, a fresh process as the unit.

    python benchmarks/compare.py BASE [--rounds 10] [--max-slowdown 5%] [--all | --benchmark NAME …]

In each round every file of benchmarks is run once on either side, one right after the other, in an order drawn anew;
what counts is the difference of such a pair, so that a machine that is slower today, or for a minute, meets both. Exit
codes: 0 nothing is slower by more than the limit, 1 something is, 2 wrong use or a side that cannot be measured.

Files, in build/benchmark-compare: `base.json` and `new.json` as pytest-benchmark saves them (`pytest-benchmark
compare` reads them), and `comparison.json`.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from budgets import read_budgets
from check import node_ids
from figures import Scale, show_value
from paired import compare_pairs, holm, least_pairs, smallest_seen
from saved import Benchmark, read_saved, refuse_other_machine, without_folder
from sides import ROOT, Side, check_out, collect, measure, measuring_code_differs, merge, working_tree
from tool import FAILED, FINE, run

from harness.cli.table import Column, render_table
from harness.errors import ConfigError
from harness.intervals import Interval

OUTPUT = ROOT / "build" / "benchmark-compare"
ALPHA = 0.05
"""The chance of one false alarm in a comparison, all benchmarks together."""
WALL = "wall_us"
COLUMNS = (
    Column(title="benchmark"),
    Column(title="figure"),
    Column(title="base", right=True),
    Column(title="new", right=True),
    Column(title="change [95 % interval]"),
    Column(title="verdict"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One benchmark on both sides."""

    benchmark: str
    """Its name."""
    figure: str
    """What stands for it; the name ends in the unit."""
    base: Sequence[float]
    """One value for each round."""
    new: Sequence[float]
    """The values of the same rounds."""
    change: Interval
    """New minus base, in the figure's unit."""
    p_different: float
    """The chance of such a difference if there were none, corrected for the number of benchmarks."""
    p_past_limit: float
    """The same for a slowdown past the limit."""
    smallest_seen: float
    """The change that would have been found with a chance of 80 %, in the figure's unit."""

    @property
    def base_median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.base)

    @property
    def is_past_limit(self) -> bool:
        """Whether it is surely slower by more than the limit."""
        return self.p_past_limit <= ALPHA

    def percent(self, change: float) -> float:
        """Of the base's median; infinite where that is nothing."""
        return 100 * change / self.base_median if self.base_median > 0 else math.copysign(math.inf, change)

    def verdict(self, limit_pct: float) -> str:
        """In words."""
        if self.is_past_limit:
            return f"SLOWER by more than {limit_pct:g} %"
        if self.p_different <= ALPHA:
            return "slower" if self.change.mid > 0 else "faster"
        return f"no difference seen ({self.percent(self.smallest_seen):.3g} % would have been)"


def compare_sides(
    base: Side, new: Side, benchmarks: Sequence[str], *, rounds: int, steps: int, limit_pct: float, folder: Path
) -> list[Compared]:
    """Measure both sides in turns.

    Args:
        base: What is held against.
        new: What may have become slower.
        benchmarks: Names; both sides have them.
        rounds: Pairs of processes for each benchmark.
        steps: Steps that a step benchmark counts in each process.
        limit_pct: The slowdown, in percent of the base, that is tolerated.
        folder: Gets `base.json` and `new.json`.

    Raises:
        BenchError: A benchmark failed on one of the sides.
    """
    shuffler = random.Random(7)
    chunks = [list(names) for _, names in groupby(benchmarks, key=lambda name: name.partition("::")[0])]
    with TemporaryDirectory(prefix="benchmark-compare-") as scratch:
        files: dict[str, list[Path]] = {side.name: [] for side in (base, new)}
        for number in range(1, rounds + 1):
            for done, chunk in enumerate(chunks, start=1):
                _progress(f"round {number} of {rounds}, file {done} of {len(chunks)}: {len(chunk)} benchmarks")
                for side in shuffler.sample((base, new), 2):
                    path = Path(scratch, f"{side.name}-{number}-{done}.json")
                    measure(side, chunk, steps=steps, saved=path)
                    files[side.name].append(path)
        for side in (base, new):
            merge(side, files[side.name], folder / f"{side.name}.json")
    return judge_files(folder / "base.json", folder / "new.json", limit_pct=limit_pct)


def judge_files(base_path: Path, new_path: Path, *, limit_pct: float, force: bool = False) -> list[Compared]:
    """Compare two files whose rounds were measured in pairs.

    Raises:
        ConfigError: A file cannot be read, was measured on another machine, or holds other benchmarks or rounds.
    """
    base, new = read_saved(base_path), read_saved(new_path)
    refuse_other_machine(base, new, force=force)
    pairs = []
    for name, one in new.benchmarks.items():
        other = base.benchmarks.get(name)
        if other is None or other.value != one.value or len(other.values[one.value]) != len(one.values[one.value]):
            raise ConfigError(f"{base_path} and {new_path} do not hold the same rounds of {name}")
        pairs += [(name, figure, other.values[figure], one.values[figure]) for figure in _judged_figures(one)]
    return _judge(pairs, limit_pct)


def _judged_figures(benchmark: Benchmark) -> list[str]:
    """What a benchmark is judged by.

    A step by its wall clock too: who waits for a disk uses no CPU, and makes the next step slow, which is a bare one.
    """
    also = [WALL] if benchmark.value == "total_us" and WALL in benchmark.values else []
    return [benchmark.value, *also]


def _judge(pairs: Sequence[tuple[str, str, Sequence[float], Sequence[float]]], limit_pct: float) -> list[Compared]:
    found = []
    for _, _, base, new in pairs:
        tolerated = max(statistics.median(base), 0.0) * limit_pct / 100
        found.append(compare_pairs([b - a for a, b in zip(base, new, strict=True)], threshold=tolerated))
    different, past = holm([one.p_different for one in found]), holm([one.p_above for one in found])
    return [
        Compared(
            benchmark=name,
            figure=figure,
            base=base,
            new=new,
            change=paired.interval,
            p_different=different[index],
            p_past_limit=past[index],
            smallest_seen=smallest_seen(paired.sd, len(base), num_tests=len(pairs), alpha=ALPHA),
        )
        for index, ((name, figure, base, new), paired) in enumerate(zip(pairs, found, strict=True))
    ]


def table_lines(compared: Sequence[Compared], limit_pct: float) -> Iterator[str]:
    """A line for each benchmark."""
    rows = []
    for one in compared:
        base, new = one.base_median, statistics.median(one.new)
        scale = Scale.of(one.figure, base)
        rows.append(
            (
                one.benchmark,
                one.figure,
                show_value(one.figure, base),
                scale.number(new, like=base) + scale.unit,
                f"{one.percent(one.change.mid):+.1f} % [{one.percent(one.change.low):+.1f}, "
                f"{one.percent(one.change.high):+.1f}]",
                one.verdict(limit_pct),
            )
        )
    yield from render_table(COLUMNS, rows)


def main(arguments: list[str]) -> int:
    """The command line."""
    given = _parse(arguments)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    new = working_tree()
    base = check_out(given.base, OUTPUT / "base")
    benchmarks = _choose(given, {side.name: collect(side) for side in (base, new)})
    least = least_pairs(2 * len(benchmarks), alpha=ALPHA)  # CPU and wall clock of each, at the most
    if given.rounds < least:
        raise ConfigError(
            f"--rounds={given.rounds} is too few for {len(benchmarks)} benchmarks: no difference could be significant",
            hint=f"give --rounds={least} or more, or fewer benchmarks",
        )
    print(f"base: {base}\nnew: {new}", file=sys.stderr)
    if measuring_code_differs(base):
        print("the measuring code differs between the two: a difference may be the measurement's", file=sys.stderr)
    compared = compare_sides(
        base, new, benchmarks, rounds=given.rounds, steps=given.steps, limit_pct=given.max_slowdown, folder=OUTPUT
    )
    document = {
        "base": str(base),
        "new": str(new),
        "rounds": given.rounds,
        "max_slowdown_pct": given.max_slowdown,
        "benchmarks": [asdict(one) for one in compared],
    }
    # msgspec writes what is infinite as null; JSON has no infinity.
    (OUTPUT / "comparison.json").write_bytes(msgspec.json.format(msgspec.json.encode(document)))
    for line in table_lines(compared, given.max_slowdown):
        print(line)
    return FAILED if any(one.is_past_limit for one in compared) else FINE


def _choose(given: argparse.Namespace, known: dict[str, Collection[str]]) -> list[str]:
    both = set(known["base"]) & set(known["new"])
    asked: list[str] = given.benchmark or [
        without_folder(name) for name in node_ids(read_budgets(), short=not given.all)
    ]
    for name in asked:
        if name not in known["new"]:
            raise ConfigError(
                f"--benchmark={name} is not in the suite",
                hint="`python -m pytest benchmarks --collect-only -q` lists the names",
            )
    for name in asked:
        if name not in both:
            print(f"left out, as the base does not have it: {name}", file=sys.stderr)
    chosen = sorted(name for name in dict.fromkeys(asked) if name in both)
    if not chosen:
        raise ConfigError(f"BASE={given.base} has none of the benchmarks", hint="compare with a later revision")
    return chosen


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", metavar="BASE", help="a branch, tag or commit")
    parser.add_argument("--rounds", type=_at_least_one, default=10, metavar="N", help="pairs of processes [10]")
    parser.add_argument("--steps", type=_at_least_one, default=3000, metavar="N", help="steps in each process [3000]")
    parser.add_argument(
        "--max-slowdown", type=_percent, default=5.0, metavar="PERCENT", help="what is tolerated, such as 5%% [5]"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--all", action="store_true", help="every benchmark with a budget, not only the quick ones")
    choice.add_argument("--benchmark", action="append", metavar="NAME", help="only this one; may be repeated")
    return parser.parse_args(arguments)


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of 1 or more")
    return int(text)


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}, expected percent, such as 5%")
    return value


if __name__ == "__main__":
    sys.exit(run(main))
