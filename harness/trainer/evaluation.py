"""Evaluation: the mean loss and the user's metrics over a second dataloader."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.checkpoint.state import collect_rng, restore_rng
from harness.errors import DataError
from harness.trainer.batch import check_batch, to_device
from harness.trainer.precision import Precision

MetricFn = Callable[[Any, Any], Tensor]


def evaluate(
    model: nn.Module,
    dataloader: Iterable[Any],
    *,
    forward: Callable[[Any], Any],
    loss: Callable[[Any, Any], Tensor],
    metrics: Mapping[str, MetricFn],
    device: torch.device,
    precision: Precision,
) -> dict[str, float]:
    """Mean loss and metrics, weighted by the number of samples in each batch.

    The model is in eval mode meanwhile, and the global random number generators are put back afterwards, so that
    how often one evaluates does not change what is trained. Waits for the device once, at the end.

    Returns:
        `loss` and each metric, as numbers.

    Raises:
        DataError: The dataloader yields nothing.
    """
    rng = collect_rng()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    sums: dict[str, Tensor] = {}
    num_samples = 0
    try:
        with torch.no_grad():
            for batch in dataloader:
                size = len(check_batch(batch))
                batch = to_device(batch, device)
                with precision.autocast or contextlib.nullcontext():
                    outputs = forward(batch)
                    values = {"loss": loss(outputs, batch)}
                    values.update({name: metric(outputs, batch) for name, metric in metrics.items()})
                for name, value in values.items():
                    sums[name] = sums.get(name, 0) + torch.as_tensor(value).detach().double() * size
                num_samples += size
    finally:
        for module, training in modes:  # one by one: the user may keep some of them in eval mode
            module.training = training
        restore_rng(rng)
    if num_samples == 0:
        raise DataError("eval_dataloader yielded no batch", hint="give one with at least one batch, or None")
    return {name: value.item() / num_samples for name, value in sums.items()}
