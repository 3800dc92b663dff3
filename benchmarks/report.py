"""Writes `docs/overhead.md` and its picture from saved measurements; nothing in them is typed by hand.

python benchmarks/report.py SAVED.json [--peers FILE] [--docs FOLDER] [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from budgets import DEFAULT_PATH, is_measured, judge_one, read_budgets
from overhead_plot import draw
from overhead_text import is_step, overhead_text
from peers_file import Peers, read_peers
from saved import Saved, read_saved
from tool import FAILED, FINE, run
from trials_file import Trials, read_trials

from harness.errors import ConfigError

PEERS_NAME = "peers.json"
TRIALS_NAME = "gate.json"
File = TypeVar("File")
DOCS = Path(__file__).parents[1] / "docs"


def report_files(
    saved: Saved, peers: Peers | None, trials: Trials | None, *, budgets_path: Path = DEFAULT_PATH
) -> dict[Path, str]:
    """What is to be written, by path below the documentation's folder. Equal measurements give equal bytes.

    Raises:
        ConfigError: The budget file is wrong, or nothing that is drawn was measured.
    """
    budgets = read_budgets(budgets_path).budget
    judged = [judge_one(saved, budget) for budget in budgets if is_measured(saved, budget)]
    missing = [budget for budget in budgets if not is_measured(saved, budget)]
    steps = [one for one in saved.benchmarks.values() if one.group == "step" and is_step(one)]
    if not judged and not steps:
        raise ConfigError(
            f"{saved.path} has no benchmark of the group 'step' and none of {budgets_path}; expected some to draw",
            hint="measure the whole suite with `make benchmark`",
        )
    return {
        Path("overhead.md"): overhead_text(saved, judged, missing, peers=peers, trials=trials),
        Path("images/overhead.svg"): draw(steps, judged, peers),
    }


def main(arguments: list[str]) -> int:
    """The command line."""
    given = _parse(arguments)
    peers = _read(read_peers, given.peers, given.saved.with_name(PEERS_NAME))
    trials = _read(read_trials, given.trials, given.saved.with_name(TRIALS_NAME))
    files = report_files(read_saved(given.saved), peers, trials, budgets_path=given.budgets)
    if given.check:
        return _check(files, given.docs)
    for name, text in files.items():
        path = given.docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
    return FINE


def _read(read: Callable[[Path], File], named: Path | None, beside: Path) -> File | None:
    """A file that was named has to be there; the one beside the saved file is read if it is."""
    if named is not None:
        return read(named)
    return read(beside) if beside.exists() else None


def _check(files: dict[Path, str], docs: Path) -> int:
    different = [docs / name for name, text in files.items() if not _holds(docs / name, text)]
    for path in different:
        print(f"{path} is not what the measurement says; `python benchmarks/report.py SAVED.json` writes it")
    return FAILED if different else FINE


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("saved", type=Path, metavar="SAVED.json", help="what `make benchmark` keeps")
    parser.add_argument("--peers", type=Path, metavar="FILE", help="[default: peers.json beside SAVED.json, if there]")
    parser.add_argument("--trials", type=Path, metavar="FILE", help="[default: gate.json beside SAVED.json, if there]")
    parser.add_argument(
        "--budgets", type=Path, default=DEFAULT_PATH, metavar="FILE", help="[default: benchmarks/budgets.toml]"
    )
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="FOLDER", help="where to write [default: docs]")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the files differ")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run(main))
