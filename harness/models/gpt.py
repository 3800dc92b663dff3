"""A small GPT: a decoder-only transformer with learned positions, normalised before each block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name everybody uses

from harness.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig:
    """The size of a GPT.

    Raises:
        ConfigError: A number is not positive, or the heads do not divide the width.
    """

    vocab_size: int
    """Different tokens."""
    context: int = 128
    """The longest sequence, in tokens."""
    n_layer: int = 2
    """Transformer blocks."""
    n_head: int = 4
    """Attention heads in each block."""
    d_model: int = 128
    """Width: numbers for each token between the blocks."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "n_layer", "n_head", "d_model"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} of the GPT must be at least 1")
        if self.d_model % self.n_head:
            raise ConfigError(
                f"d_model={self.d_model} of the GPT cannot be split into n_head={self.n_head} heads",
                hint=f"give a d_model that is a multiple of {self.n_head}",
            )


class Attention(nn.Module):
    """Every token looks at itself and those before it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, d_model)` in and out."""
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.n_head, width // self.n_head)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return cast(Tensor, self.out(mixed.transpose(1, 2).reshape(batch, length, width)))


class Block(nn.Module):
    """Attention, then two linear layers, each added to what came in."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.d_model)
        self.mlp_in = nn.Linear(config.d_model, 4 * config.d_model)
        self.mlp_out = nn.Linear(4 * config.d_model, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, d_model)` in and out."""
        x = x + self.attention(self.attention_norm(x))
        return cast(Tensor, x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)))))


class GPT(nn.Module):
    """A small GPT; its weights come from torch's global random generator.

    Example:
        >>> model = GPT(GPTConfig(vocab_size=50, context=16, n_layer=1, n_head=2, d_model=8))
        >>> model(torch.zeros(3, 16, dtype=torch.int64)).shape
        torch.Size([3, 16, 50])

    Args:
        config: Its size.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._initialise()

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores `(B, T, vocab_size)` of the token after each of `tokens` `(B, T)`.

        Raises:
            DataError: The sequences are longer than the context.
        """
        length = tokens.shape[1]
        if length > self.config.context:
            raise DataError(
                f"sequences of {length} tokens do not fit the GPT's context={self.config.context}",
                hint="give the model a longer context or cut the sequences",
            )
        positions = torch.arange(length, device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.head(self.norm(x)))

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross entropy in nats for each token, against `batch["targets"]` `(B, T)`."""
        return F.cross_entropy(outputs.flatten(0, 1), batch["targets"].flatten())

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # Every block adds to the same stream twice: smaller, so that the sum does not grow with the depth.
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attention.out.weight, std=residual_std)
            nn.init.normal_(block.mlp_out.weight, std=residual_std)
