"""Small runs for the tests of sessions and trainers, and what they wrote, read back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from harness.run.manifest import Manifest, read_manifest
from harness.trace.reader import Trace
from harness.trainer.trainer import Trainer

NUM_FEATURES, NUM_CLASSES = 4, 3


@dataclass(frozen=True)
class WrittenRun:
    """What one run left on the disk."""

    path: Path

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.path / "run.json")

    @property
    def status(self) -> str:
        return self.manifest.status

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """All lines of `steps`, `metrics` or `system`; every one of them has to be JSON."""
        return [json.loads(line) for line in (self.path / f"{kind}-rank0.jsonl").read_bytes().splitlines()]

    def steps(self) -> list[int]:
        return [line["step"] for line in self.lines("steps")]

    def values(self, name: str) -> list[Any]:
        """The values of a metric, in file order."""
        return [line[name] for line in self.lines("metrics") if name in line]

    def by_step(self, name: str) -> dict[int, Any]:
        return {line["step"]: line[name] for line in self.lines("metrics") if name in line}

    @property
    def text(self) -> str:
        return (self.path / "logs-rank0.txt").read_text()

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.path / "checkpoints").glob("ep*.pt"))

    def traces(self) -> list[Path]:
        return sorted((self.path / "traces").glob("*.pt.trace.json.gz"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def written(root: Path) -> Callable[..., WrittenRun]:
    def read(name: str = "foo") -> WrittenRun:
        return WrittenRun(root / name)

    return read


@pytest.fixture
def make_loader() -> Callable[..., DataLoader[Any]]:
    """Makes the same data each time: images of 4 numbers in 3 classes."""

    def make(num_batches: int = 10, *, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(num_batches * batch_size, NUM_FEATURES, generator=generator)
        labels = torch.randint(NUM_CLASSES, (num_batches * batch_size,), generator=generator)
        return DataLoader(TensorDataset(features, labels), batch_size=batch_size, **options)

    return make


@pytest.fixture
def make_model() -> Callable[[], torch.nn.Module]:
    """Makes the same small model each time, whatever the global generators say."""

    def make() -> torch.nn.Module:
        model = torch.nn.Sequential(
            torch.nn.Linear(NUM_FEATURES, 8), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(8, NUM_CLASSES)
        )
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.uniform_(-0.5, 0.5, generator=generator)
        return model

    return make


def cross_entropy(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs, batch[1])


@pytest.fixture
def make_trainer(
    root: Path, make_loader: Callable[..., Any], make_model: Callable[[], torch.nn.Module]
) -> Iterator[Callable[..., Trainer]]:
    """Makes a trainer of the small model for the run `foo`; its directory is let go of after the test."""
    made: list[Trainer] = []

    def make(**options: Any) -> Trainer:
        settings: dict[str, Any] = {
            "model": None,
            "train_dataloader": None,
            "max_duration": "1ep",
            "loss_fn": cross_entropy,
            "run_name": "foo",
            "root": root,
            "seed": 17,
            "device": "cpu",
            "save_interval": None,
            **options,
        }
        if settings["model"] is None:
            settings["model"] = make_model()
        if settings["train_dataloader"] is None:
            settings["train_dataloader"] = make_loader()
        trainer = Trainer(**settings)
        made.append(trainer)
        return trainer

    yield make
    for trainer in made:
        trainer.session.directory.release()


class Script:
    """A training program in a process of its own, which says what it has reached."""

    def __init__(self, path: Path, arguments: list[str], options: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(path), *arguments],
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options},
        )

    def wait_for(self, line: str) -> None:
        """Read stdout until the program says this."""
        assert self.process.stdout is not None
        for said in self.process.stdout:
            if said.strip() == line:
                return
        raise AssertionError(f"the program ended before it said {line!r}: {self.process.communicate()[1]}")

    def end(self, timeout_s: float = 60) -> tuple[int, str]:
        """Wait for the end: return code and stderr."""
        _, stderr = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, stderr or ""


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    """Starts a program given as text; it is killed after the test if it still runs."""
    started: list[Script] = []

    def start(text: str, *arguments: object, **options: Any) -> Script:
        path = tmp_path / f"program{len(started)}.py"
        path.write_text(text)
        started.append(Script(path, [str(argument) for argument in arguments], options))
        return started[-1]

    yield start
    for script in started:
        if script.process.poll() is None:
            script.process.kill()
        script.process.communicate()


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(name="wait_until")
def _wait_until() -> Callable[..., None]:
    return wait_until


@pytest.fixture
def intervals() -> Callable[[Trace, str], list[tuple[int, int]]]:
    """Gives start and end, in ns, of a trace's spans whose name begins like this."""

    def find(trace: Trace, name: str) -> list[tuple[int, int]]:
        rows = [row for row in np.flatnonzero(trace.spans) if trace.names[trace.name[row]].startswith(name)]
        return sorted((int(trace.ts_ns[row]), int(trace.ts_ns[row] + trace.dur_ns[row])) for row in rows)

    return find
