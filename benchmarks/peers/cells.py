"""What is measured: each framework in each case on each workload. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Framework:
    """One column of the comparison."""

    module: str
    """Module of this folder that trains with it."""
    title: str
    """For people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedWorkload:
    """What every framework trains."""

    spec: str
    """As `harness train --workload`."""
    warmup_steps: int
    """Steps before those that count; whole blocks."""
    block_steps: int
    """Steps that one loop makes until it is the other's turn."""
    num_steps: int
    """Steps of each loop that count, unless the user says otherwise."""


FRAMEWORKS = {
    "bare": Framework(module="bare", title="bare loop (null control)"),
    "harness": Framework(module="harness_trainer", title="harness Trainer"),
    "ignite": Framework(module="ignite_loop", title="ignite Engine"),
    "fabric": Framework(module="fabric_loop", title="Lightning Fabric"),
    "accelerate": Framework(module="accelerate_loop", title="accelerate"),
    "lightning": Framework(module="lightning_trainer", title="Lightning Trainer"),
    "transformers": Framework(module="hf_trainer", title="transformers Trainer"),
}
WORKLOADS = {
    "tiny": TrainedWorkload(spec="harness.bench.tiny:build", warmup_steps=300, block_steps=20, num_steps=3000),
    "charlm": TrainedWorkload(spec="charlm", warmup_steps=20, block_steps=4, num_steps=200),
}
CASES = ("off", "tensorboard", "profiler-idle")


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One cell of the table."""

    framework: str
    """A name of `FRAMEWORKS`."""
    workload: str
    """A name of `WORKLOADS`."""
    case: str
    """One of `CASES`."""
