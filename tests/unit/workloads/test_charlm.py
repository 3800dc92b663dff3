from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError, WorkloadError
from harness.workloads.charlm import (
    CharWindows,
    accuracy,
    build,
    documentation_text,
    encode,
    unigram_entropy_nats,
)


def test_text_is_long_english_that_is_the_same_every_time() -> None:
    text = documentation_text()
    assert len(text) > 300_000
    assert text == documentation_text()
    assert " the " in text


@given(st.text(min_size=1))
def test_encoded_text_decodes_to_itself(text: str) -> None:
    encoded = encode(text)
    assert "".join(encoded.vocabulary[token] for token in encoded.tokens.tolist()) == text
    assert set(encoded.vocabulary) == set(text)
    assert encoded.tokens.dtype == torch.int64


def test_unigram_entropy_of_known_texts() -> None:
    assert unigram_entropy_nats("aaaa") == 0
    assert unigram_entropy_nats("abcd") == pytest.approx(math.log(4))
    # three quarters and one quarter
    assert unigram_entropy_nats("aaab") == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))


def test_pieces_follow_each_other_and_targets_are_one_character_ahead() -> None:
    pieces = CharWindows(torch.arange(10), context=3)
    assert [
        (item["tokens"].tolist(), item["targets"].tolist()) for item in (pieces[i] for i in range(len(pieces)))
    ] == [
        ([0, 1, 2], [1, 2, 3]),
        ([3, 4, 5], [4, 5, 6]),
        ([6, 7, 8], [7, 8, 9]),
    ]


def test_last_piece_is_left_out_when_its_last_target_is_missing() -> None:
    assert len(CharWindows(torch.arange(9), context=3)) == 2


@pytest.mark.parametrize("index", [-1, 3])
def test_piece_that_is_not_there_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError):
        CharWindows(torch.arange(10), context=3)[index]


def test_accuracy_is_the_share_of_characters_guessed_right() -> None:
    outputs = torch.eye(4)[torch.tensor([[0, 1], [2, 3]])]
    assert accuracy(outputs, {"targets": torch.tensor([[0, 1], [2, 0]])}).item() == 0.75


def test_options_reach_the_model_and_the_loader() -> None:
    workload = build(n_layer=1, n_head=2, d_model=8, context=16, batch_size=5, lr=0.25)
    batch = next(iter(workload.train_dataloader))
    assert batch["tokens"].shape == batch["targets"].shape == (5, 16)
    assert torch.equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    assert workload.get_num_samples(batch) == 5
    assert workload.get_num_tokens(batch) == 80
    assert len(workload.model.blocks) == 1
    assert workload.optimizer(workload.model).param_groups[0]["lr"] == 0.25


def test_learning_rate_rises_to_its_value_in_20_steps() -> None:
    workload = build(n_layer=1, d_model=8, lr=0.02)
    optimizer = workload.optimizer(workload.model)
    scheduler = workload.scheduler(optimizer)
    seen = []
    for _ in range(25):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen[0] == pytest.approx(0.001)
    assert seen == sorted(seen)
    assert seen[20:] == [pytest.approx(0.02)] * 5


def test_no_piece_of_the_evaluation_is_trained_on() -> None:
    workload = build(context=64)
    train, held_out = workload.train_dataloader.dataset, workload.eval_dataloader.dataset
    trained = {train[i]["tokens"].numpy().tobytes() for i in range(len(train))}
    held = [held_out[i]["tokens"].numpy().tobytes() for i in range(len(held_out))]
    assert len(train) > 8 * len(held_out) > 0
    # the documentation repeats a line here and there, whole pieces hardly ever
    assert sum(piece in trained for piece in held) < 0.01 * len(held)


def test_building_draws_only_weights_from_the_global_generator() -> None:
    from harness.models import GPT

    torch.manual_seed(3)
    workload = build(n_layer=1, d_model=8)
    after_build = torch.get_rng_state()
    torch.manual_seed(3)
    GPT(workload.model.config)
    assert torch.equal(after_build, torch.get_rng_state())


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"workers": -1}, {"lr": -1.0}, {"context": 10**6}, {"n_head": 3}]
)
def test_value_out_of_range_is_refused_by_name(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        build(**options)


def test_python_without_the_text_is_answered_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(WorkloadError, match=r"(?s)pydoc_data\.topics.*libpython3-stdlib"):
        build()
