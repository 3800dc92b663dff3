"""What counts as a batch, how it is split and moved, and how a model is called with it."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import nn

from harness.errors import ConfigError, DataError
from harness.trainer.batch import check_batch, first_tensor, forward_for, loss_for, split, to_device

Pair = namedtuple("Pair", ["image", "label"])
X, Y = torch.arange(10.0).reshape(5, 2), torch.arange(5)


@pytest.mark.parametrize(
    "batch", [X, (X, Y), [X, Y], {"x": X}, {"meta": ["a"], "x": X}, ("text", {"deep": [X]}), Pair(X, Y)]
)
def test_the_first_tensor_is_found_wherever_it_is(batch: Any) -> None:
    assert first_tensor(batch) is X
    assert check_batch(batch) is X


@pytest.mark.parametrize("batch", ["text", 3, None, [], {}, ["a", {"b": 1}], {"x": [1, 2]}])
def test_a_batch_without_a_tensor_is_refused_by_its_type(batch: Any) -> None:
    with pytest.raises(DataError, match=f"yielded a {type(batch).__name__} that holds no tensor"):
        check_batch(batch)


def test_a_tensor_without_dimensions_holds_no_samples() -> None:
    with pytest.raises(DataError, match="without dimensions"):
        check_batch((torch.tensor(3.0), X))


@pytest.mark.parametrize("batch", [X, (X, Y), [X, Y], {"x": X, "y": Y}, Pair(X, Y)])
def test_microbatches_are_the_batch_in_order_and_of_its_kind(batch: Any) -> None:
    parts = split(batch, 2)
    assert [len(check_batch(part)) for part in parts] == [2, 2, 1]
    assert all(type(part) is type(batch) for part in parts)
    assert torch.equal(torch.cat([check_batch(part) for part in parts]), X)


def test_labels_are_split_where_their_images_are() -> None:
    assert [part.label.tolist() for part in split(Pair(X, Y), 3)] == [[0, 1, 2], [3, 4]]


def test_what_is_no_tensor_goes_into_each_microbatch() -> None:
    for part in split({"x": X, "task": "copy", "scale": torch.tensor(2.0)}, 2):
        assert part["task"] == "copy"
        assert part["scale"] == 2


@pytest.mark.parametrize("size", [5, 6, 1000])
def test_a_batch_that_fits_is_not_split(size: int) -> None:
    batch = (X, Y)
    assert split(batch, size) == [batch]


def test_tensors_of_different_lengths_cannot_be_split() -> None:
    with pytest.raises(DataError, match="have 5 and 3 samples"):
        split((X, torch.zeros(3)), 2)


@pytest.mark.parametrize("batch", [X, (X, "a"), [X, 1], {"x": X, "n": None}, Pair(X, "b"), ((X,), {"x": [X]})])
def test_to_device_moves_tensors_and_keeps_the_rest_and_the_shape(batch: Any) -> None:
    moved = to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    tensor = first_tensor(moved)
    assert tensor is not None
    assert tensor.device.type == "meta"
    if isinstance(batch, Pair):
        assert moved.label == "b"


class Encoding(UserDict[str, Any]):
    """A dict with attributes, as tokenizers give them."""

    def __getattr__(self, name: str) -> Any:
        return self.__dict__["data"][name] if "data" in self.__dict__ else None


def test_a_mapping_with_attributes_keeps_them_on_the_device_and_in_microbatches() -> None:
    batch = Encoding(input=X, labels=Y)
    moved = to_device(batch, torch.device("meta"))
    assert moved.labels.device.type == "meta"
    assert [micro.labels.tolist() for micro in split(batch, 3)] == [[0, 1, 2], [3, 4]]
    assert batch.labels is Y


class TakesInput(nn.Module):
    def forward(self, x: Any) -> Any:
        return x


class TakesBatch(nn.Module):
    def forward(self, batch: Any) -> Any:
        return batch


class TakesKeywords(nn.Module):
    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        return input_ids, attention_mask


class TakesAll(nn.Module):
    def forward(self, **inputs: Any) -> Any:
        return inputs


def test_a_pair_is_called_with_its_input() -> None:
    assert forward_for(TakesInput())((X, Y)) is X
    assert forward_for(TakesInput())([X, Y]) is X


def test_a_tensor_is_passed_as_it_is() -> None:
    assert forward_for(TakesInput())(X) is X


def test_a_parameter_called_batch_gets_the_whole_batch() -> None:
    batch = (X, Y)
    assert forward_for(TakesBatch())(batch) is batch


def test_a_dict_gives_the_keywords_that_forward_takes() -> None:
    assert forward_for(TakesKeywords())({"input_ids": X, "labels": Y}) == (X, None)
    assert forward_for(TakesAll())({"a": X, "labels": Y}) == {"a": X, "labels": Y}


def test_a_dict_with_no_key_that_forward_takes_names_both_sides() -> None:
    with pytest.raises(DataError, match=r"batch's keys \(image, labels\).*TakesKeywords.forward \(.*input_ids"):
        forward_for(TakesKeywords())({"image": X, "labels": Y})


def test_loss_fn_goes_before_the_models_own_loss() -> None:
    class WithLoss(TakesInput):
        def loss(self, outputs: Any, batch: Any) -> Any:
            return "own"

    assert loss_for(WithLoss(), None)(X, X) == "own"
    assert loss_for(WithLoss(), lambda outputs, batch: "given")(X, X) == "given"


def test_a_model_without_a_loss_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match=r"TakesInput has no method loss\(outputs, batch\)\nhint: give loss_fn="):
        loss_for(TakesInput(), None)
