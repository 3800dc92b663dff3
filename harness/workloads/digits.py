"""The workload `digits`: a convolutional network learns the handwritten digits that scikit-learn ships.

1,797 real grey pictures of 8x8 pixels: small enough to reach 95 % on two processors within seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from harness.errors import ConfigError, MissingExtraError
from harness.models.mnist import mnist_model
from harness.workloads.base import Workload

_NUM_TEST = 360
_SPLIT_SEED = 1797
_MAX_PIXEL = 16.0


class DigitsSplit(NamedTuple):
    """Pictures `(N, 1, 8, 8)` float32 in 0 to 1 with their digits `(N,)` int64."""

    train: TensorDataset
    test: TensorDataset


def load_digits_split() -> DigitsSplit:
    """1,437 pictures to learn from and 360 to test with, the same ones every time.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "the workload 'digits' needs scikit-learn, which holds its pictures",
            hint='pip install "profiling-harness[digits]"',
        ) from error
    data = load_digits()
    images = torch.as_tensor(data.images, dtype=torch.float32).unsqueeze(1) / _MAX_PIXEL
    digits = torch.as_tensor(data.target, dtype=torch.int64)
    # The pictures are sorted by who wrote them; a generator of our own leaves the training's alone.
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    test, train = order[:_NUM_TEST], order[_NUM_TEST:]
    return DigitsSplit(TensorDataset(images[train], digits[train]), TensorDataset(images[test], digits[test]))


def accuracy(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
    """Share of the pictures whose highest score `(B, 10)` is at their digit, 0 to 1."""
    return (outputs.argmax(dim=1) == batch[1]).float().mean()


def build(batch_size: int = 32, lr: float = 3e-3, workers: int = 0, width: int = 32) -> Workload:
    """Build the workload. Seed before: weights and shuffling come from torch's global generator.

    Args:
        batch_size: Pictures in a step; at 32 an epoch has 45 steps.
        lr: Learning rate of AdamW.
        workers: Processes that load data; 0 loads in the training process.
        width: Channels of the first convolution.

    Raises:
        ConfigError: A value is out of range.
        MissingExtraError: scikit-learn is not installed.
    """
    if batch_size < 1 or workers < 0 or lr <= 0:
        raise ConfigError(
            f"batch_size={batch_size}, workers={workers}, lr={lr} of the workload 'digits': expected "
            "batch_size of at least 1, workers of at least 0 and lr above 0"
        )
    split = load_digits_split()
    train = DataLoader(
        split.train, batch_size=batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )

    def optimizer(model: nn.Module) -> Optimizer:
        return AdamW(model.parameters(), lr=lr)

    return Workload(
        model=mnist_model(num_classes=10, width=width),
        train_dataloader=train,
        eval_dataloader=DataLoader(split.test, batch_size=_NUM_TEST),
        optimizer=optimizer,
        metrics={"accuracy": accuracy},
        max_duration="6ep",
        get_num_samples=lambda batch: len(batch[1]),
        name="digits",
        description="convolutional network on scikit-learn's 8x8 handwritten digits",
    )
