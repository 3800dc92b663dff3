"""A script that trains one step and says how long it took to get there: bare, with a session, or with the Trainer.

python benchmarks/first_step.py bare|session|trainer ROOT prints CPU time and Unix time at the end of the step, in ns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


def main(loop: str, root: str) -> None:
    """Build a small model, train a step."""
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    batch = (torch.randn(32, 64), torch.randint(64, (32,)))
    LOOPS[loop](root, model, torch.optim.SGD(model.parameters(), lr=1e-3), batch)


def _loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(outputs, batch[1])


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    _loss(model(batch[0]), batch).backward()
    optimizer.step()
    optimizer.zero_grad()


def _say_when() -> None:
    print(time.process_time_ns(), time.time_ns(), flush=True)


def _bare(_root: str, model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    _train(model, optimizer, batch)
    _say_when()


def _session(root: str, model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    import harness

    with harness.session(root=root) as run:
        for one in run.steps([batch], max_duration="1ba"):
            _train(model, optimizer, one)
            _say_when()


def _trainer(root: str, model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    import harness

    class SayWhen(harness.Callback):
        def batch_end(self, trainer: harness.Trainer) -> None:  # noqa: ARG002
            _say_when()

    harness.Trainer(
        model=model,
        train_dataloader=[batch],
        max_duration="1ba",
        loss_fn=_loss,
        optimizers=optimizer,
        root=root,
        callbacks=[SayWhen()],
    ).fit()


LOOPS: dict[str, Callable[[str, nn.Module, torch.optim.Optimizer, tuple[Tensor, Tensor]], None]] = {
    "bare": _bare,
    "session": _session,
    "trainer": _trainer,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
