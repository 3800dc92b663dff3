"""`make benchmark-peers`: what a step costs with other training frameworks, and with this one measured as they are.

    python benchmarks/peers/run.py [--processes 7] [--framework NAME]... [--output FILE]

Each measurement is a fresh process; the cells of the table take turns, in another order each time. The table goes to
standard output, everything to a JSON file, which is written after each round of all cells. Exit codes: 0 all measured,
1 a cell was not or its weights differ from the bare loop's, 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from cells import CASES, FRAMEWORKS, WORKLOADS, Cell
from environment import HERE, ROOT, contents, make
from rows import CONFIDENCE, Outcome, all_fine, as_text, rows, versions

from harness.bench.process import ENVIRONMENT
from harness.errors import HarnessError

OUTPUT = ROOT / "benchmarks" / "results" / "peers.json"
MIN_STEPS = 10
_TIMEOUT_S = 600
_SEED = 3
_CHOICES: Mapping[str, Iterable[str]] = {"framework": FRAMEWORKS, "workload": WORKLOADS, "case": CASES}
_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
_FIXED = {**ENVIRONMENT, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_FOLDERS = re.compile(r"(?<![\w.~-])(?<!:/)~?/(?!/)(?:[^\s/'\"():]+/)+")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from a terminal."""
    options = _options(arguments)
    try:
        python = options.python or make()
        python_version, packages = contents(python)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    cells = [Cell(*names) for names in product(options.framework, options.workload, options.case)]
    around = {"format": 1, "date": datetime.now(UTC).date().isoformat(), "git": _git()}
    around |= {"machine": {**_machine(), "python": python_version}, "versions": packages}
    document: dict[str, Any] = {}
    rounds = measure_all(cells, python=python, processes=options.processes, steps=options.steps)
    for processes, outcomes in enumerate(rounds, start=1):
        # After each round: what was measured stays, whenever this is interrupted.
        document = {**around, **as_document(outcomes, processes=processes, steps=options.steps)}
        write(document, options.output)
    print(as_text(document["rows"]))
    return 0 if all_fine(document["rows"]) else 1


def measure_all(
    cells: Sequence[Cell], *, python: Path, processes: int, steps: Mapping[str, int]
) -> Iterator[dict[Cell, list[Outcome]]]:
    """Measure each cell in several processes; one that cannot be measured is not tried again.

    Yields:
        After each round, in which every cell had one process: all that was measured so far.
    """
    outcomes: dict[Cell, list[Outcome]] = {cell: [] for cell in cells}
    shuffler = random.Random(_SEED)
    for number in range(1, processes + 1):
        order = [cell for cell in cells if all("measured" in outcome for outcome in outcomes[cell])]
        shuffler.shuffle(order)
        for done, cell in enumerate(order):
            title = f"round {number} of {processes}, {done + 1} of {len(order)}"
            print(f"{title}: {cell.framework} {cell.workload} {cell.case}", file=sys.stderr, flush=True)
            outcomes[cell].append(measure_one(cell, python=python, num_steps=steps[cell.workload]))
        yield outcomes


def measure_one(cell: Cell, *, python: Path, num_steps: int) -> Outcome:
    """Measure a cell once, in a process that knows nothing of this one's settings."""
    with TemporaryDirectory(prefix="peers-") as folder:
        files, result = Path(folder, "files"), Path(folder, "result.json")
        files.mkdir()
        command = [str(python), str(HERE / "measure.py"), "--framework", cell.framework, "--workload", cell.workload]
        command += ["--case", cell.case, "--steps", str(num_steps), "--folder", str(files), "--result", str(result)]
        try:
            ended = subprocess.run(
                command, cwd=files, env=_environment(folder), capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"it did not end within {_TIMEOUT_S} s"}
        if ended.returncode != 0 or not result.is_file():
            said = ended.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            return {"failed": without_folders(f"{_ending(ended.returncode)}: {said[-1].strip()}")}
        outcome: dict[str, Any] = json.loads(result.read_text())
    return {"missing": without_folders(outcome["missing"])} if "missing" in outcome else outcome


def as_document(
    outcomes: Mapping[Cell, Sequence[Outcome]], *, processes: int, steps: Mapping[str, int]
) -> dict[str, Any]:
    """What was measured and how; README.md beside this file describes it."""
    return {
        "processes": processes,
        "steps": dict(steps),
        "warmup_steps": {name: WORKLOADS[name].warmup_steps for name in steps},
        "block_steps": {name: WORKLOADS[name].block_steps for name in steps},
        "confidence": CONFIDENCE,
        "frameworks": [
            {"name": name, "title": FRAMEWORKS[name].title, "version": version}
            for name, version in versions(outcomes).items()
        ],
        "workloads": list(steps),
        "cases": list(dict.fromkeys(cell.case for cell in outcomes)),
        "rows": rows(outcomes),
    }


def write(document: Mapping[str, Any], path: Path) -> None:
    """Write the file whole or not at all, a row to a line."""
    head = json.dumps({name: value for name, value in document.items() if name != "rows"}, indent=1)
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False, allow_nan=False) for row in document["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    beside.replace(path)


def without_folders(message: str) -> str:
    """One line that names files, but not where they lie on this machine."""
    return _FOLDERS.sub("", " ".join(message.split()))


def _ending(returncode: int) -> str:
    """What a process ended with; somebody else may have ended it."""
    return f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"


def _environment(home: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, **_FIXED, "HOME": home, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def _machine() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "num_cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
    }


def _git() -> dict[str, Any]:
    try:
        commit, status = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": True}
    return {"commit": commit, "dirty": bool(status)}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a step costs with other training frameworks.")
    parser.add_argument("--processes", type=_at_least(1), default=7, help="fresh processes for each cell [7]")
    for name, choices in _CHOICES.items():
        parser.add_argument(f"--{name}", action="append", choices=tuple(choices), help="may be repeated [all]")
    parser.add_argument(
        "--steps", type=_steps, action="append", default=[], metavar="WORKLOAD=N", help="of each loop, that count"
    )
    parser.add_argument("--python", type=_interpreter, help="measure with this interpreter and make no environment")
    parser.add_argument("--output", type=_file, default=OUTPUT, help=f"the JSON file [{OUTPUT.relative_to(ROOT)}]")
    options = parser.parse_args(arguments)
    for name, choices in _CHOICES.items():
        asked = getattr(options, name)
        setattr(options, name, [choice for choice in choices if asked is None or choice in asked])
    idle = [name for name, _ in options.steps if name not in options.workload]
    if idle:
        parser.error(f"--steps for {', '.join(idle)}, which --workload leaves out")
    options.steps = {name: WORKLOADS[name].num_steps for name in options.workload} | dict(options.steps)
    return options


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least {least}")
        return value

    return number


def _steps(text: str) -> tuple[str, int]:
    name, equals, number = text.partition("=")
    if not equals or name not in WORKLOADS:
        raise argparse.ArgumentTypeError(f"{text!r}, expected {' or '.join(f'{each}=N' for each in WORKLOADS)}")
    return name, _at_least(MIN_STEPS)(number)


def _interpreter(text: str) -> Path:
    found = shutil.which(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no program; expected a Python interpreter")
    return Path(found).absolute()


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; expected a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"the folder of {text!r} cannot be made: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"the folder of {text!r} cannot be written to")
    return path


if __name__ == "__main__":
    sys.exit(main())
