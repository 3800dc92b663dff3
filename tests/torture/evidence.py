"""What a run left on the disk: what was promised, what is there, and what is in between."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workload import LOSS

from harness.checkpoint.find import file_fault, load_checkpoint, newest_verified
from harness.checkpoint.index import read_index
from harness.checkpoint.paths import CheckpointFolder, CheckpointPaths
from harness.run.directory import RunDirectory, list_runs
from harness.run.manifest import read_manifest

_TEMPORARY = re.compile(r"\..+\.(tmp|trash)")


@dataclass(kw_only=True)
class Evidence:
    """One run, as a reader finds it."""

    status: str = "none"
    """As `harness ls` shows it."""
    attempts: list[str] = field(default_factory=list)
    """The status of each."""
    went_on_after: int = 0
    """The step of the checkpoint that the last attempt went on from."""
    error: str | None = None
    """What the last attempt says of its end."""
    acknowledged: int = 0
    """The step of the newest checkpoint that `run.json` or the log calls saved."""
    found: int = 0
    """The step of the checkpoint a resume would take; 0 for none."""
    num_good: int = 0
    """Checkpoints that agree with their checksum."""
    weights: str = ""
    """A hash of the model's weights in the checkpoint found."""
    skipped: list[str] = field(default_factory=list)
    """Newer ones that are damaged, and why."""
    between: list[str] = field(default_factory=list)
    """What shows that a save was under way when the process ended."""
    latest: str = ""
    """What is wrong with the link to the latest."""
    temporary: list[str] = field(default_factory=list)
    """Temporary files anywhere in the run."""
    torn: list[str] = field(default_factory=list)
    """Files whose content is not what their name says."""
    losses: dict[int, str] = field(default_factory=dict)
    """The loss of each step, every bit of it."""
    doubled: list[int] = field(default_factory=list)
    """Steps that have more than one loss."""
    steps: list[int] = field(default_factory=list)
    """The steps in the step file, in its order."""
    traces: list[str] = field(default_factory=list)
    """Names of the finished ones."""
    refused_writes: int = 0
    """How often the disk refused a line of a log, as `run.json` counts it."""
    log: str = ""
    """The text log."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; `from_dict` is the way back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Evidence:
        """From what `to_dict` gave, after JSON made its keys texts."""
        return cls(**{**found, "losses": {int(step): loss for step, loss in found["losses"].items()}})

    @property
    def lost(self) -> bool:
        """Whether something that was called saved cannot be found."""
        return self.found < self.acknowledged


def look(root: Path, name: str = "foo") -> Evidence:
    """Read all that a run left. Nothing is changed."""
    path = root / name
    evidence = Evidence()
    listing = {run.run_name: run for run in list_runs(root)}.get(name)
    if listing is None:
        return evidence
    evidence.status = listing.status
    manifest = read_manifest(path / "run.json")
    evidence.attempts = [attempt.status for attempt in manifest.attempts]
    evidence.error = manifest.attempts[-1].error
    evidence.went_on_after = manifest.attempts[-1].resumed_from_step or 0
    saved = [artifact.step or 0 for artifact in manifest.artifacts if artifact.kind == "checkpoint"]
    evidence.log = _read(path / "logs-rank0.txt")
    saved += [int(step) for step in re.findall(r"saved checkpoints/\S*ba(\d+)-", evidence.log)]
    evidence.acknowledged = max(saved, default=0)
    evidence.refused_writes = int(manifest.health.get("steps_file", {}).get("errors", 0))
    evidence.temporary = sorted(
        str(file.relative_to(path)) for file in path.rglob("*") if _TEMPORARY.fullmatch(file.name)
    )
    if (path / "checkpoints").is_dir():
        _look_at_checkpoints(root, name, evidence)
    _look_at_lines(path, evidence)
    _look_at_traces(path, evidence)
    return evidence


def _look_at_checkpoints(root: Path, name: str, evidence: Evidence) -> None:
    paths = CheckpointPaths.compile(
        folder="{run_name}/checkpoints", filename="ep{epoch}-ba{batch}-rank{rank}.pt", latest="latest-rank{rank}.pt"
    )
    folder = CheckpointFolder(paths, RunDirectory.find(root, name).resolve, {"run_name": name, "rank": 0})
    index = read_index(folder.index_path)
    search = newest_verified(folder)
    evidence.skipped = [f"{one.path.name}: {one.reason}" for one in search.skipped]
    there = {file.name for file in folder.stored(index)}
    good = [name for name in there & set(index) if file_fault(folder.path / name, index[name]) is None]
    evidence.num_good = len(good)
    evidence.between = [path for path in evidence.temporary if path.startswith("checkpoints/")]
    evidence.between += [f"{name} is not listed" for name in sorted(there - set(index))]
    if search.found is None:
        return
    evidence.found = search.found.step
    content = load_checkpoint(search.found.path, run_name=name, rank=0)
    weights = content["state"]["model"]
    evidence.weights = hashlib.sha256(b"".join(weights[key].numpy().tobytes() for key in sorted(weights))).hexdigest()
    latest = folder.latest_path
    if latest is not None and not (latest.is_symlink() and latest.readlink().name == search.found.path.name):
        evidence.latest = f"{latest.name} does not point to {search.found.path.name}"
        evidence.between.append(evidence.latest)
    if evidence.found > evidence.acknowledged:
        evidence.between.append(f"step {evidence.found} is saved and not acknowledged")


def _look_at_lines(path: Path, evidence: Evidence) -> None:
    for kind in ("metrics", "steps", "system"):
        file = path / f"{kind}-rank0.jsonl"
        data = file.read_bytes() if file.exists() else b""
        # the end of a file may be torn; a line before it may not
        lines = data.split(b"\n")[:-1]
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                evidence.torn.append(f"{file.name}:{number}")
                continue
            if kind == "steps":
                evidence.steps.append(row["step"])
            elif LOSS in row:
                step = row["step"]
                if step in evidence.losses:
                    evidence.doubled.append(step)
                evidence.losses[step] = float(row[LOSS]).hex()


def _look_at_traces(path: Path, evidence: Evidence) -> None:
    for file in sorted((path / "traces").glob("[!.]*")):
        evidence.traces.append(file.name)
        try:
            json.loads(gzip.decompress(file.read_bytes()))
        except (OSError, EOFError, ValueError) as error:
            evidence.torn.append(f"traces/{file.name}: {error!r}")


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def complaints_after_kill(evidence: Evidence, *, keep: int = 2) -> list[str]:
    """What must never be, however and whenever a process ended. Empty when all is well."""
    wrong = [f"torn: {where}" for where in evidence.torn] + [f"damaged: {which}" for which in evidence.skipped]
    if evidence.lost:
        wrong.append(f"step {evidence.acknowledged} was called saved, and {evidence.found} is the newest found")
    if evidence.acknowledged and evidence.num_good < 1:
        wrong.append("no listed checkpoint is good")
    return wrong


def complaints_about_resume(before: Evidence, after: Evidence) -> list[str]:
    """Whether an attempt went on from the newest checkpoint that was there. Empty when it did, or never began."""
    if len(after.attempts) == len(before.attempts) or after.went_on_after == before.found:
        return []
    return [f"step {before.found} was there, and the run went on after {after.went_on_after}"]


def complaints_at_end(evidence: Evidence, reference: Evidence) -> list[str]:
    """How a run that was killed and resumed differs from one that never was. Empty when it does not."""
    wrong = complaints_after_kill(evidence)
    if evidence.status != "finished":
        wrong.append(f"the run is {evidence.status}: {evidence.error}")
    if evidence.losses != reference.losses:
        steps = sorted(evidence.losses.keys() | reference.losses.keys())
        differ = [step for step in steps if evidence.losses.get(step) != reference.losses.get(step)]
        wrong.append(f"the losses of steps {differ} differ")
    if evidence.weights != reference.weights:
        wrong.append("the final weights differ")
    if evidence.steps != reference.steps:
        wrong.append(f"the step file has {evidence.steps}")
    wrong += [f"step {step} has two losses" for step in evidence.doubled]
    wrong += [f"left behind: {path}" for path in evidence.temporary]
    if evidence.latest:
        wrong.append(evidence.latest)
    return wrong
