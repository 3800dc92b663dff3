"""What one measurement is: which loop, on which workload, with which options of the harness."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from harness.bench.measured import Aside, Measured

Loop = Literal["bare", "session", "trainer"]
IDLE = "idle"
"""As `profile`: a recipe that is attached and whose first window never comes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseSpec:
    """One loop to be measured against the bare one, in a process of its own. All fields can be written as JSON."""

    workload: str = "harness.bench.tiny:build"
    """As `harness train --workload`: its model, optimizer, loss and batches are what both loops train."""
    workload_options: dict[str, str] = field(default_factory=dict)
    """As `-o key=value`."""
    loop: Loop = "trainer"
    """`trainer`, `session` (a loop of the user's own with three phases), or `bare`: the bare loop against itself."""
    loggers: tuple[str, ...] = ()
    """Loggers beside JSONL and text, by name or `module:Class`."""
    log_interval: str = "1ba"
    """How often metrics are taken."""
    profile: str | None = None
    """A recipe's name or path, or `idle`; None attaches none. A recipe that opens windows is given a schedule that
    records many steps, and the steps inside windows are what is measured."""
    save_interval: str | None = None
    """How often a checkpoint is saved; None saves none."""
    num_scalars: int | None = None
    """Metrics logged in each step. None: what the loop logs by itself, the Trainer its loss, the session nothing."""
    tensors: bool = False
    """Whether those metrics are tensors of one element instead of floats."""
    callback: str | None = None
    """`module:Class` of a callback to construct and add (Trainer only)."""
    trainer_options: dict[str, Any] = field(default_factory=dict)
    """More keyword arguments of the Trainer or session, such as `save_num_checkpoints_to_keep`."""
    num_steps: int = 4000
    """Steps of each loop that are counted."""
    warmup_steps: int = 300
    """Steps before those."""
    seed: int = 17
    """Both loops' weights are drawn with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """The run's own account, per counted step, in µs: what `run.json` would tell its user."""

    thread_us: float
    """Wall time on the training thread, all parts."""
    background_us: float
    """CPU time of the harness's threads, the sampler scaled as in `Measured`."""
    children_us: float
    """CPU time of child processes."""
    typical_thread_us: float
    """`thread_us` of a typical step: the outer 2 % of the counted steps left out at either end, as in `Measured`, and
    with them most of the time in which something else had the processor. Without checkpoints and windows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseResult:
    """What one process measured."""

    measured: Measured
    """From outside: CPU clocks around each step."""
    ledger: Ledger | None
    """From inside; None for the bare loop."""
    same_weights: bool | None
    """Whether both loops ended with bit-equal weights: not where the model draws random numbers (dropout). None where
    the bare loop paused, so that it trained less."""
    window_step_us: float | None
    """Median CPU time of a step inside a capture window, where the recipe opened some."""
    save_us: float | None
    """How long a checkpoint held the training thread up, where some were saved, from the run's own account."""
    window: Aside | None
    """Steps inside capture windows, the last one of each left out, where the recipe opened some."""
    apart: Aside | None
    """Steps after which a checkpoint was saved, or with which a capture window ended."""
    health: dict[str, Any]
    """How the run's parts fared, as in its `run.json`; empty for the bare loop."""
    written_bytes: int
    """Size of everything in the run directory at the end."""
    max_rss_bytes: int
    """Largest memory of the process."""
