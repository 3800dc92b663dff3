"""One measurement in a process of its own: a framework beside the bare loop, and a check that the steps took turns.

    python measure.py --framework lightning --workload tiny --case off --steps 2000 --folder DIRECTORY --result FILE

Writes one JSON object to FILE, `{"missing": MESSAGE}` where the framework cannot be imported. Runs in the environment
of the frameworks, one process for each measurement.
"""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from blocks import BlockLoader
from cells import CASES, FRAMEWORKS, WORKLOADS
from peer import Setup, SteppedDataLoader
from workloads import build


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
    blocks = BlockLoader(twins, steps, warmup_steps=warmup_steps, block_steps=WORKLOADS[workload].block_steps)
    setup = Setup(
        case=case,
        parts=twins.subject,
        loader=SteppedDataLoader(blocks, warmup_steps + steps),
        num_steps=warmup_steps + steps,
        folder=folder,
    )
    clocked_ns = peer.train(setup) or 0
    if torch.get_num_threads() != 1:
        raise RuntimeError(f"the framework set torch to {torch.get_num_threads()} threads, the bare loop has 1")
    measured = blocks.result(clocked_ns=clocked_ns)
    return {
        "measured": {**asdict(measured), "total_us": measured.total_us},
        "weights_equal": twins.subject.same_weights_as(twins.bare),
        "batches_ahead": blocks.batches_ahead(),
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
