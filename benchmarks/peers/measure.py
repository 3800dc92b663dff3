"""One measurement in a process of its own: a framework beside the bare loop, and a check that the steps took turns.

    python measure.py --framework lightning --workload tiny --case off --steps 2000 --folder DIRECTORY --result FILE

Writes one JSON object to FILE, `{"missing": MESSAGE}` where the framework cannot be imported. Runs in the environment
of the frameworks, one process for each measurement.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import CASES, FRAMEWORKS, WORKLOADS
from peer import Setup, SteppedDataLoader
from workloads import Pair, Twins, build

from harness.bench.interleaved import InterleavingLoader, settle_garbage


class TakenTurns:
    """Yields a fixed number of batches and notes how far both loops are at each.

    Optimizers write to parameters in place, and torch counts such writes for each tensor: reading the count costs the
    measured loop nothing.
    """

    def __init__(self, twins: Twins, num_batches: int, *, warmup_steps: int) -> None:
        self._batches = twins.batches
        self._num_batches = num_batches
        self._warmup_steps = warmup_steps
        self._bare = next(twins.bare.model.parameters())
        self._subject = next(twins.subject.model.parameters())
        self._writes: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[Pair]:
        for index, batch in enumerate(islice(cycle(self._batches), self._num_batches)):
            if index == self._warmup_steps:
                settle_garbage()
            self._writes.append((self._bare._version, self._subject._version))
            yield batch

    def batches_ahead(self) -> int:
        """How many batches the framework fetches before it trains on the first of them.

        Raises:
            RuntimeError: Between two batches it did not take exactly one step, so that the times of the two loops
                cannot be told apart.
        """
        writes = np.array(self._writes)[self._warmup_steps :]
        per_step = np.diff(writes, axis=0)
        if len(self._writes) != self._num_batches or not (per_step == per_step[0, 0]).all():
            raise RuntimeError(
                f"the framework asked for {len(self._writes)} of {self._num_batches} batches and trained between them "
                f"with {sorted(set(per_step[:, 1].tolist()))} writes to the weights, where the bare loop has "
                f"{sorted(set(per_step[:, 0].tolist()))}"
            )
        bare, subject = writes[0] - np.array(self._writes[0])
        return int(bare - subject) // int(per_step[0, 0])


def measure(framework: str, *, workload: str, case: str, steps: int, folder: Path) -> dict[str, Any]:
    """Train a workload with one framework.

    Raises:
        RuntimeError: The loops did not take turns, or not with the same number of threads.
    """
    try:
        peer = importlib.import_module(FRAMEWORKS[framework].module)
    except ImportError as error:
        return {"missing": f"{type(error).__name__}: {error}"}
    torch.set_num_threads(1)
    twins = build(workload)
    warmup_steps = WORKLOADS[workload].warmup_steps
    turns = TakenTurns(twins, warmup_steps + steps, warmup_steps=warmup_steps)
    interleaving = InterleavingLoader(twins.bare, iter(turns), warmup_steps=warmup_steps)
    setup = Setup(
        case=case,
        parts=twins.subject,
        loader=SteppedDataLoader(interleaving, warmup_steps + steps),
        num_steps=warmup_steps + steps,
        folder=folder,
    )
    clocked_ns = peer.train(setup) or 0
    if torch.get_num_threads() != 1:
        raise RuntimeError(f"the framework set torch to {torch.get_num_threads()} threads, the bare loop has 1")
    measured = interleaving.result(clocked_ns=clocked_ns)
    return {
        "measured": {**asdict(measured), "total_us": measured.total_us},
        "weights_equal": twins.subject.same_weights_as(twins.bare),
        "batches_ahead": turns.batches_ahead(),
        "note": peer.NOTES[case],
        "version": peer.VERSION,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--framework", choices=FRAMEWORKS, required=True)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    arguments = vars(parser.parse_args())
    result = arguments.pop("result")
    result.write_text(json.dumps(measure(**arguments)))


if __name__ == "__main__":
    main()
