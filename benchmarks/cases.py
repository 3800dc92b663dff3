"""Cases of `harness.bench` as figures for pytest-benchmark, each round in a fresh process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from recorded import record

from harness.bench.cases import RUN_NAME
from harness.bench.process import run_in_process
from harness.bench.spec import CaseResult, CaseSpec
from harness.run.manifest import read_manifest


def record_case(benchmark: Any, spec: CaseSpec, *, processes: int, folder: Path, value: str = "total_us") -> None:
    """Measure a case and save its figures; the text after the run shows the medians.

    Args:
        benchmark: The fixture, of a test marked with `timer=clock`.
        spec: What to measure.
        processes: How often.
        folder: For the measured runs; each is removed again.
        value: The figure that stands for the benchmark.
    """

    def measure() -> Mapping[str, float]:
        with TemporaryDirectory(dir=folder) as root:
            result = run_in_process(spec, root=Path(root))
            if spec.loop != "bare":
                check_health(Path(root) / RUN_NAME)
            return figures(result)

    record(benchmark, measure, value=value, rounds=processes)


def check_health(directory: Path) -> None:
    """See that nothing went wrong: a logger that failed, or was left behind at the end, costs less than one that works.

    Args:
        directory: Of a measured run.
    """
    manifest = read_manifest(directory / "run.json")
    assert manifest.status == "finished", manifest.status
    ill = {name: health for name, health in manifest.health["loggers"].items() if health["errors"] or health["hung"]}
    assert not ill, f"loggers that failed: {ill}"


def figures(result: CaseResult) -> dict[str, float]:
    """The figures of one process, by name."""
    measured, ledger = result.measured, result.ledger
    found: dict[str, float | None] = {
        "bare_us": measured.bare_us,
        "thread_us": measured.thread_us,
        "background_us": measured.background_us,
        "children_us": measured.children_us,
        "total_us": measured.total_us,
        "wall_us": measured.wall_us,
        "null_us": measured.null_us,
        "added_pct": 100 * measured.total_us / measured.bare_us,
        "ledger_thread_us": ledger.typical_thread_us if ledger is not None else None,
        "ledger_background_us": ledger.background_us if ledger is not None else None,
        "window_step_us": result.window_step_us,
        "window_added_us": result.window_step_us - measured.bare_us if result.window_step_us is not None else None,
        "save_us": result.save_us,
        "written_bytes": result.written_bytes,
        "max_rss_bytes": result.max_rss_bytes,
    }
    return {name: value for name, value in found.items() if value is not None}
