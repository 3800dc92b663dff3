from __future__ import annotations

import math

import pytest
import torch

from harness.errors import ConfigError, DataError
from harness.models import GPT, GPTConfig

SMALL = GPTConfig(vocab_size=11, context=8, n_layer=2, n_head=2, d_model=16)


def test_scores_have_one_number_for_each_token_of_the_vocabulary() -> None:
    model = GPT(SMALL)
    assert model(torch.zeros(3, 8, dtype=torch.int64)).shape == (3, 8, 11)
    assert model(torch.zeros(3, 5, dtype=torch.int64)).shape == (3, 5, 11)


def test_no_token_sees_what_comes_after_it() -> None:
    torch.manual_seed(0)
    model = GPT(SMALL)
    tokens = torch.randint(11, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[0, :5], after[0, :5])
    assert (before[0, 5:] - after[0, 5:]).abs().amax(dim=-1).gt(1e-6).all()


def test_order_of_the_tokens_matters() -> None:
    torch.manual_seed(0)
    model = GPT(SMALL)
    assert not torch.allclose(model(torch.tensor([[1, 2, 3]]))[0, 2], model(torch.tensor([[2, 1, 3]]))[0, 2])


def test_fresh_model_is_as_good_as_guessing() -> None:
    torch.manual_seed(0)
    model = GPT(SMALL)
    batch = {"tokens": torch.randint(11, (16, 8)), "targets": torch.randint(11, (16, 8))}
    assert model.loss(model(batch["tokens"]), batch).item() == pytest.approx(math.log(11), rel=0.05)


def test_loss_is_the_mean_over_all_tokens() -> None:
    model = GPT(GPTConfig(vocab_size=2, context=2, n_layer=1, n_head=1, d_model=2))
    outputs = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)]]])
    # -ln(1/2) and -ln(3/4)
    loss = model.loss(outputs, {"targets": torch.tensor([[0, 1]])})
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_every_weight_gets_a_gradient() -> None:
    model = GPT(SMALL)
    batch = {"tokens": torch.randint(11, (4, 8)), "targets": torch.randint(11, (4, 8))}
    model.loss(model(batch["tokens"]), batch).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_sequence_longer_than_the_context_is_refused_with_both_lengths() -> None:
    with pytest.raises(DataError, match=r"9 tokens.*context=8"):
        GPT(SMALL)(torch.zeros(1, 9, dtype=torch.int64))


def test_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"d_model=10.*n_head=4"):
        GPTConfig(vocab_size=5, d_model=10, n_head=4)


@pytest.mark.parametrize("name", ["vocab_size", "context", "n_layer", "n_head", "d_model"])
def test_sizes_that_cannot_be_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=0"):
        GPTConfig(**{"vocab_size": 5, name: 0})
