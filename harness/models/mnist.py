"""A convolutional network for small grey pictures of digits, of 8x8 pixels as well as 28x28."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name everybody uses

from harness.errors import ConfigError

_POOLED = 4


class MNISTModel(nn.Module):
    """Two convolutions, pooling to 4x4 whatever the size of the picture, two linear layers.

    Args:
        num_classes: Classes to tell apart.
        width: Channels of the first convolution; the second has twice as many.
        in_channels: Channels of a picture.

    Raises:
        ConfigError: A number is not positive.
    """

    def __init__(self, num_classes: int = 10, *, width: int = 32, in_channels: int = 1) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("width", width), ("in_channels", in_channels)):
            if value < 1:
                raise ConfigError(f"{name}={value} of the digits model must be at least 1")
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, kernel_size=3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(_POOLED)
        self.hidden = nn.Linear(2 * width * _POOLED**2, 4 * width)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores `(B, num_classes)` of pictures `(B, in_channels, H, W)`."""
        features = F.relu(self.conv1(images))
        features = self.pool(F.relu(self.conv2(features)))
        return cast(Tensor, self.head(F.relu(self.hidden(features.flatten(1)))))

    def loss(self, outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
        """Mean cross entropy in nats against `batch[1]`, the classes `(B,)`."""
        return F.cross_entropy(outputs, batch[1])


def mnist_model(num_classes: int = 10, *, width: int = 32, in_channels: int = 1) -> MNISTModel:
    """A small convolutional classifier; its weights come from torch's global random generator.

    Example:
        >>> import torch
        >>> mnist_model(num_classes=10)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    Args:
        num_classes: Classes to tell apart.
        width: Channels of the first convolution; the rest of the model grows with it.
        in_channels: Channels of a picture.

    Raises:
        ConfigError: A number is not positive.
    """
    return MNISTModel(num_classes, width=width, in_channels=in_channels)
