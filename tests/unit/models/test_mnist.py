from __future__ import annotations

import math

import pytest
import torch

from harness.errors import ConfigError
from harness.models import mnist_model


@pytest.mark.parametrize("pixels", [8, 28, 33])
def test_pictures_of_any_size_give_a_score_for_each_class(pixels: int) -> None:
    assert mnist_model(num_classes=7)(torch.rand(5, 1, pixels, pixels)).shape == (5, 7)


def test_loss_is_the_mean_cross_entropy_against_the_second_part_of_the_batch() -> None:
    model = mnist_model(num_classes=2)
    outputs = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    batch = (torch.zeros(2, 1, 8, 8), torch.tensor([0, 0]))
    # -ln(1/2) and -ln(3/4)
    assert model.loss(outputs, batch).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_every_weight_gets_a_gradient() -> None:
    model = mnist_model()
    batch = (torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))
    model.loss(model(batch[0]), batch).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_width_scales_the_model() -> None:
    sizes = [sum(weight.numel() for weight in mnist_model(width=width).parameters()) for width in (8, 16)]
    assert 3 < sizes[1] / sizes[0] < 4


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"width": -1}, {"in_channels": 0}])
def test_sizes_that_cannot_be_are_refused_by_name(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        mnist_model(**options)
