"""What a batch may look like, and the few things the loop does with one.

A batch is a tensor, or a tuple, list or dict (nested if need be) that holds tensors whose first dimension is the
sample.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import ConfigError, DataError


def first_tensor(batch: Any) -> Tensor | None:
    """The first tensor found in a batch, or None."""
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, (tuple, list)):
        return None
    for item in batch:
        found = first_tensor(item)
        if found is not None:
            return found
    return None


def check_batch(batch: Any) -> Tensor:
    """The first tensor of a batch the loop can train on.

    Raises:
        DataError: The batch holds no tensor, or one without a first dimension.
    """
    tensor = first_tensor(batch)
    if tensor is None:
        raise DataError(
            f"the dataloader yielded a {type(batch).__name__} that holds no tensor",
            hint="a batch is a tensor, or a tuple, list or dict of them; check the dataset and the collate_fn",
        )
    if tensor.ndim == 0:
        raise DataError(
            "the dataloader yielded a tensor without dimensions; the first dimension must be the sample",
            hint="check the dataloader's batch_size and collate_fn",
        )
    return tensor


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with all its tensors on the device; copies do not wait for pinned memory."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return _like(batch, {key: to_device(value, device) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(item, device) for item in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(item, device) for item in batch)
    return batch


def split(batch: Any, size: int) -> list[Any]:
    """Microbatches of at most `size` samples, in order; what is no tensor goes into each."""
    num_samples = len(check_batch(batch))
    if num_samples <= size:
        return [batch]
    return [_slice(batch, start, start + size, num_samples) for start in range(0, num_samples, size)]


def _slice(batch: Any, start: int, stop: int, num_samples: int) -> Any:
    if isinstance(batch, Tensor):
        if batch.ndim == 0:
            return batch
        if len(batch) != num_samples:
            raise DataError(
                f"microbatch_size cannot split a batch whose tensors have {num_samples} and {len(batch)} samples",
                hint="all tensors of a batch need the same first dimension",
            )
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return _like(batch, {key: _slice(value, start, stop, num_samples) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_slice(item, start, stop, num_samples) for item in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_slice(item, start, stop, num_samples) for item in batch)
    return batch


def _like(batch: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    """The values in a mapping of the batch's own type: one that also has attributes keeps them (`batch.labels`)."""
    if type(batch) is dict or not isinstance(batch, MutableMapping):
        return values
    twin = copy.copy(batch)
    twin.update(values)
    return twin


def forward_for(model: nn.Module) -> Callable[[Any], Any]:
    """How this model is called with a batch.

    A model whose `forward` calls its first parameter `batch` gets the whole batch. Otherwise a tuple's or list's first
    item is the input, a dict is passed as keyword arguments (those that `forward` accepts), a tensor as it is.
    """
    parameters = list(inspect.signature(model.forward).parameters.values())
    if parameters and parameters[0].name == "batch":
        return model
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    accepted = {parameter.name for parameter in parameters}

    def forward(batch: Any) -> Any:
        if isinstance(batch, (tuple, list)):
            return model(batch[0])
        if isinstance(batch, Mapping):
            inputs = batch if takes_all else {key: batch[key] for key in batch if key in accepted}
            if not inputs:
                raise DataError(
                    f"none of the batch's keys ({', '.join(map(str, batch))}) is a parameter of "
                    f"{type(model).__name__}.forward ({', '.join(accepted)})",
                    hint="rename the keys, or call forward's first parameter `batch` to get the whole dict",
                )
            return model(**inputs)
        return model(batch)

    return forward


def loss_for(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor] | None) -> Callable[[Any, Any], Tensor]:
    """The loss: `loss_fn(outputs, batch)`, else the model's own `loss(outputs, batch)`.

    Raises:
        ConfigError: There is neither.
    """
    loss = loss_fn if loss_fn is not None else getattr(model, "loss", None)
    if not callable(loss):
        raise ConfigError(
            f"there is no loss: loss_fn is not given and {type(model).__name__} has no method loss(outputs, batch)",
            hint="give loss_fn=lambda outputs, batch: torch.nn.functional.cross_entropy(outputs, batch[1])",
        )
    return loss
