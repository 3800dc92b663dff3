"""Makes of a file that pytest-benchmark saved the one that is kept in the repository.

    python benchmarks/publish.py SAVED.json benchmarks/results/latest.json

What says who measured, and where on their disk, is left out: only known keys are kept. So are the rounds of benchmarks
that have thousands of them, of which the medians that the statistics use stay. `pytest-benchmark compare` reads both.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from saved import CALL_FIGURE, read_saved, without_folder
from tool import run

from harness.errors import ConfigError

MACHINE_KEYS = (
    "machine",
    "system",
    "python_implementation",
    "python_implementation_version",
    "python_version",
    "torch",
    "python",
    "num_cpus",
)
CPU_KEYS = ("arch", "bits", "count", "brand_raw", "hz_advertised_friendly", "l2_cache_size", "l3_cache_size")
COMMIT_KEYS = ("id", "time", "dirty")
MAX_BYTES = 300_000


def publish(path: Path, target: Path) -> int:
    """Write the kept form of a file; returns its size in bytes.

    Raises:
        ConfigError: The file cannot be read, or a path of this machine would be in what is kept.
    """
    saved = read_saved(path)
    data = json.loads(path.read_bytes())
    data["machine_info"] = {
        **_only(data["machine_info"], MACHINE_KEYS),
        "cpu": _only(data["machine_info"]["cpu"], CPU_KEYS),
    }
    data["commit_info"] = _only(data["commit_info"], COMMIT_KEYS)
    for entry in data["benchmarks"]:
        benchmark = saved.benchmarks[without_folder(entry["fullname"])]
        entry["stats"].pop("data", None)
        entry["extra_info"].update(
            value=benchmark.value, values={name: _short(values, name) for name, values in benchmark.values.items()}
        )
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    _refuse_paths(path, text)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return len(text.encode())


def _only(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}


def _short(values: Any, figure: str) -> list[float]:
    return [round(value, 6) for value in values] if figure == CALL_FIGURE else list(values)


def _refuse_paths(path: Path, text: str) -> None:
    for folder in {str(Path.home()), str(Path.cwd())} - {"/"}:
        if folder in text:
            start = text.index(folder)
            raise ConfigError(
                f"{path} holds a path of this machine: {text[max(start - 40, 0) : start + 80]!r}",
                hint="take it out of the benchmark's params or extra_info",
            )


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("saved", type=Path, metavar="SAVED.json", help="as --benchmark-json writes it")
    parser.add_argument("target", type=Path, metavar="KEPT.json", help="the file to write")
    given = parser.parse_args(arguments)
    size_bytes = publish(given.saved, given.target)
    if size_bytes > MAX_BYTES:
        print(
            f"warning: {given.target} has {size_bytes // 1000} kB; more than {MAX_BYTES // 1000} is much",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
