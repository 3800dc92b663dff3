"""The table at the end of a run, and of `harness show`: where the time went, what it cost, what to look at next."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.problems import find_problems
from harness.cli.run_files import RunFiles
from harness.cli.table import render_pairs
from harness.loop.options import DEFAULT_ROOT
from harness.units import NS_PER_US, format_bytes, format_duration_ns

if TYPE_CHECKING:
    from harness.report.summary import RunSummary
    from harness.run.manifest import Artifact

MAIN_PHASES = ("data", "forward", "backward", "optimizer", "harness")
"""Always shown, in this order."""
SHOWN_FROM_PCT = 0.5
"""Other phases are shown from this share of the time on."""
_MAX_FILES = 4
_LEAST_PART_PCT = 0.01

Pairs = list[tuple[str, str | Sequence[str]]]


def summary_lines(run: RunFiles) -> Iterator[str]:
    """The table: steps, times, phases, own cost, files, problems."""
    return render_pairs(_pairs(run))


def next_lines(run: RunFiles) -> Iterator[str]:
    """The commands and pages to look at the run with."""
    name, root = run.directory.run_name, run.directory.root
    at_root = "" if root == _default_root() else f" --root {shlex.quote(shown_path(root))}"
    in_make = "" if root == _default_root() else f" ROOT={shlex.quote(shown_path(root))}"
    program, traces = _program(), _of_kind(run, "trace")
    pairs: Pairs = [
        (f"{program} show {name}{at_root}", "attempts, files and versions, and this table"),
        (
            f"{program} tensorboard{at_root}",
            f"scalars, system metrics and traces; the same as make tensorboard{in_make}",
        ),
    ]
    if traces:
        pairs.append(("https://ui.perfetto.dev", f"open {_path(run, traces[0])}: phases over their operators"))
    yield "next"
    for line in render_pairs(pairs):
        yield f"  {line}"


def shown_path(path: Path) -> str:
    """A path as people type it: relative to where they are, if it lies below."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def format_us(us: float | None) -> str:
    """A time for people; `-` where there is none."""
    return "-" if us is None else format_duration_ns(us * NS_PER_US)


def format_pct(pct: float | None) -> str:
    """A share for people; `-` where there is none."""
    if pct is None:
        return "-"
    return f"{pct:.2f} %" if pct < 1 else f"{pct:.1f} %"


def _program() -> str:
    """What to type for `harness` here: its path where the virtual environment is not active."""
    installed = Path(sys.executable).with_name("harness")
    return "harness" if shutil.which("harness") or not installed.exists() else shlex.quote(shown_path(installed))


def _default_root() -> Path:
    return Path(DEFAULT_ROOT).resolve()


def _pairs(run: RunFiles) -> Pairs:
    manifest = run.manifest
    pairs: Pairs = [
        ("run", f"{run.directory.run_name} ({manifest.status})"),
        ("directory", shown_path(run.directory.path)),
    ]
    if run.steps is not None and run.steps.num_steps:
        pairs += _step_pairs(run.steps)
    else:
        pairs.append(("steps", str(manifest.summary.step)))
    pairs.append(("own cost", _own_cost(run)))
    if run.evaluation is not None:
        metrics = ", ".join(f"{name} {_number(value)}" for name, value in run.evaluation.metrics.items())
        pairs.append(("evaluation", f"{metrics} (after step {run.evaluation.step})"))
    pairs += [
        ("traces", _files(run, "trace")),
        ("checkpoints", _files(run, "checkpoint")),
    ]
    problems = [*([run.steps_error] if run.steps_error else []), *find_problems(manifest.health)]
    if problems:
        pairs.append(("problems", problems))
    return pairs


def _step_pairs(steps: RunSummary) -> Pairs:
    count = str(steps.num_steps)
    if steps.counts_captured:
        count += " (all in or next to a capture window, which slows them down)"
    elif steps.num_left_out:
        count += f" ({steps.num_left_out} in or next to a capture window, left out of the times below)"
    times = f"median {format_us(steps.median_step_us)}, p95 {format_us(steps.p95_step_us)}"
    if steps.steps_per_s is not None:
        times += f", {steps.steps_per_s:.3g} steps/s"
    return [("steps", count), ("step time", times), ("phases", _phases(steps.shares_pct))]


def _phases(shares_pct: dict[str, float]) -> str:
    others = sorted(
        (name for name, pct in shares_pct.items() if name not in MAIN_PHASES and pct > SHOWN_FROM_PCT),
        key=lambda name: -shares_pct[name],
    )
    return ", ".join(f"{name} {format_pct(shares_pct.get(name, 0.0))}" for name in (*MAIN_PHASES, *others))


def _own_cost(run: RunFiles) -> str | list[str]:
    own_cost = run.manifest.own_cost
    thread, background = own_cost.get("training_thread_pct"), own_cost.get("background_pct")
    if thread is None or background is None:
        # The last attempt made no step, is still running, or was killed before it could settle its account.
        inside = run.steps.own_cost_pct if run.steps is not None else None
        return "not known" if inside is None else f"{format_pct(inside)} of the time in steps; no account of the rest"
    parts = _parts(own_cost)
    return [
        f"{format_pct(thread)} of the training time, on the training thread{f': {parts}' if parts else ''}",
        f"{format_pct(background)} of it as CPU time of threads and child processes",
    ]


def _parts(own_cost: dict[str, Any]) -> str:
    """The parts on the training thread, the dearest first."""
    training_ns, by_part = own_cost.get("training_ns"), own_cost.get("training_thread_ns")
    if not training_ns or not isinstance(by_part, dict):
        return ""
    shares_pct = {name: 100 * by_part[name] / training_ns for name in sorted(by_part, key=lambda name: -by_part[name])}
    return ", ".join(f"{name} {format_pct(pct)}" for name, pct in shares_pct.items() if pct >= _LEAST_PART_PCT)


def _files(run: RunFiles, kind: str) -> list[str]:
    """The newest files of a kind with their sizes, oldest of them first."""
    found = _of_kind(run, kind)
    shown = [f"{_path(run, one)} ({format_bytes(one.size_bytes)})" for one in found[-_MAX_FILES:]]
    if len(found) > len(shown):
        return [f"{len(found)}, the last {len(shown)} of them:", *shown]
    return shown or ["none"]


def _of_kind(run: RunFiles, kind: str) -> list[Artifact]:
    return [artifact for artifact in run.manifest.artifacts if artifact.kind == kind]


def _path(run: RunFiles, artifact: Artifact) -> str:
    return shown_path(run.directory.path / artifact.path)


def _number(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
