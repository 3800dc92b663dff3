"""The workload `charlm`: a small GPT learns English, character by character, from Python's own documentation.

The text of `help("topics")` comes with every Python, so there is nothing to download.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler
from torch.utils.data import DataLoader, Dataset

from harness.errors import ConfigError, WorkloadError
from harness.models.gpt import GPT, GPTConfig
from harness.workloads.base import Workload

_EVAL_SHARE = 0.1
_EVAL_BATCH_SIZE = 64
_WARMUP_STEPS = 20


class EncodedText(NamedTuple):
    """A text as numbers."""

    tokens: Tensor
    """`(length,)` int64, each the place of its character in `vocabulary`."""
    vocabulary: str
    """The different characters of the text, sorted."""


class CharWindows(Dataset[dict[str, Tensor]]):
    """Consecutive pieces of a text, each with the same piece moved on by one character.

    Item i is `{"tokens": (context,), "targets": (context,)}`. There is no chance in here: order is the
    sampler's.

    Args:
        tokens: The text `(length,)`.
        context: Characters in a piece.
    """

    def __init__(self, tokens: Tensor, context: int) -> None:
        self._tokens = tokens
        self._context = context

    def __len__(self) -> int:
        # The last piece needs one character more, its last target.
        return (len(self._tokens) - 1) // self._context

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"piece {index} of {len(self)}")
        start = index * self._context
        end = start + self._context
        return {"tokens": self._tokens[start:end], "targets": self._tokens[start + 1 : end + 1]}


def documentation_text() -> str:
    """The topics of Python's help, in the order of their names: about half a million characters.

    Raises:
        WorkloadError: This Python was packaged without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise WorkloadError(
            "the workload 'charlm' needs the standard library's pydoc_data.topics, which this Python lacks",
            hint="use a complete Python (on Debian the package libpython3-stdlib has it)",
        ) from error
    return "\n".join(topics[name] for name in sorted(topics))


def encode(text: str) -> EncodedText:
    """Number the characters of a text; the vocabulary is what occurs in it."""
    vocabulary = "".join(sorted(set(text)))
    place = {character: index for index, character in enumerate(vocabulary)}
    return EncodedText(torch.tensor([place[character] for character in text]), vocabulary)


def unigram_entropy_nats(text: str) -> float:
    """Mean cross entropy of the best guess that knows how often each character occurs and nothing else.

    A language model has learned something once its loss is below it.

    Example:
        >>> round(unigram_entropy_nats("abab"), 4)
        0.6931
    """
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log(count / len(text)) for count in counts)


def accuracy(outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Share of the characters guessed right, 0 to 1, from scores `(B, T, vocab_size)`."""
    return (outputs.argmax(dim=-1) == batch["targets"]).float().mean()


def build(
    n_layer: int = 2,
    n_head: int = 4,
    d_model: int = 128,
    context: int = 64,
    batch_size: int = 32,
    lr: float = 2e-3,
    workers: int = 0,
) -> Workload:
    """Build the workload. Seed before: weights and shuffling come from torch's global generator.

    Args:
        n_layer: Transformer blocks.
        n_head: Attention heads in each.
        d_model: Width of the model; a multiple of `n_head`.
        context: Characters in a sequence.
        batch_size: Sequences in a step.
        lr: Learning rate of AdamW, reached after 20 steps.
        workers: Processes that load data; 0 loads in the training process.

    Raises:
        ConfigError: A value is out of range.
        WorkloadError: This Python was packaged without the text.
    """
    if batch_size < 1 or workers < 0 or lr <= 0:
        raise ConfigError(
            f"batch_size={batch_size}, workers={workers}, lr={lr} of the workload 'charlm': expected "
            "batch_size of at least 1, workers of at least 0 and lr above 0"
        )
    text = encode(documentation_text())
    config = GPTConfig(
        vocab_size=len(text.vocabulary), context=context, n_layer=n_layer, n_head=n_head, d_model=d_model
    )
    cut = round(len(text.tokens) * (1 - _EVAL_SHARE))
    if context >= len(text.tokens) - cut:
        raise ConfigError(
            f"context={context} of the workload 'charlm' is longer than the {len(text.tokens) - cut} "
            "characters it evaluates on"
        )
    train = DataLoader(
        CharWindows(text.tokens[:cut], context),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )

    def optimizer(model: nn.Module) -> Optimizer:
        return AdamW(model.parameters(), lr=lr)

    def warmup(optimizer: Optimizer) -> LRScheduler:
        return LinearLR(optimizer, start_factor=1 / _WARMUP_STEPS, total_iters=_WARMUP_STEPS)

    return Workload(
        model=GPT(config),
        train_dataloader=train,
        eval_dataloader=DataLoader(CharWindows(text.tokens[cut:], context), batch_size=_EVAL_BATCH_SIZE),
        optimizer=optimizer,
        scheduler=warmup,
        metrics={"accuracy": accuracy},
        max_duration="300ba",
        get_num_samples=lambda batch: len(batch["tokens"]),
        get_num_tokens=lambda batch: batch["tokens"].numel(),
        grad_clip_norm=1.0,
        name="charlm",
        description="small GPT on the text of Python's help topics, character by character",
    )
