"""What the tortured processes train: small, quick, and with everything that a resume has to put back."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from harness import Workload

NUM_FEATURES, NUM_CLASSES = 32, 4
LOSS = "loss/train/total"


def build(hidden: int = 512, num_batches: int = 12, batch_size: int = 4) -> Workload:
    """Shuffled data, dropout, a schedule and an optimizer with a state: each draws on something of its own.

    Three parameters and moments of 64 kB at `hidden=512`: a checkpoint is written in several pieces.
    """
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num_batches * batch_size, NUM_FEATURES, generator=generator)
    labels = torch.randint(NUM_CLASSES, (num_batches * batch_size,), generator=generator)
    model = nn.Sequential(nn.Linear(NUM_FEATURES, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, NUM_CLASSES))
    return Workload(
        model=model,
        train_dataloader=DataLoader(TensorDataset(inputs, labels), batch_size=batch_size, shuffle=True),
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100),
        loss_fn=lambda outputs, batch: nn.functional.cross_entropy(outputs, batch[1]),
    )
