from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

from harness.checkpoint.staging import Staging, tensor_bytes


def same(first: Any, second: Any) -> bool:
    """Whether two states are equal, types included."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.stride() == second.stride() and torch.equal(first, second)
    return bool(first == second)


def trained() -> dict[str, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def test_a_copy_is_equal_and_stays_as_it_was_when_training_goes_on() -> None:
    state = {**trained(), "counts": (1, [2.5, None], {"a": b"x", 3: {4}}), "dtype": torch.bfloat16}
    staged = Staging().copy(state)
    assert same(staged.content, state)
    before = staged.content["model"]["0.weight"].clone()
    state["model"]["0.weight"].add_(1)
    state["counts"][1].append(7)
    assert torch.equal(staged.content["model"]["0.weight"], before)
    assert staged.content["counts"][1] == [2.5, None]


def test_what_a_module_says_of_its_version_is_copied_too() -> None:
    state = trained()
    copied = Staging().copy(state).content["model"]
    assert type(copied) is OrderedDict
    assert copied._metadata == state["model"]._metadata
    assert copied._metadata["1"]["version"] == 2


def test_tensors_that_share_memory_share_it_in_the_copy_and_are_copied_once() -> None:
    whole = torch.arange(12.0)
    state = {"whole": whole, "row": whole.view(3, 4)[1], "turned": whole.view(3, 4).t(), "again": whole}
    staged = Staging().copy(state)
    assert same(staged.content, state)
    assert staged.size_bytes == whole.nbytes == tensor_bytes(state)
    staged.content["whole"][4] = 100
    assert staged.content["row"][0] == 100
    assert staged.content["turned"][0, 1] == 100


def test_a_part_of_a_larger_memory_alone_keeps_its_place() -> None:
    state = {"part": torch.arange(12.0).view(3, 4)[:, 1], "empty": torch.empty(0), "number": torch.tensor(3)}
    assert same(Staging().copy(state).content, state)


def test_kinds_of_tensors_that_are_rare() -> None:
    state = {
        "sparse": torch.eye(3).to_sparse(),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "half": torch.ones(3, dtype=torch.float16),
        "parameter": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "learns": torch.ones(2, requires_grad=True),
    }
    copied = Staging().copy(state).content
    assert torch.equal(copied["sparse"].to_dense(), torch.eye(3))
    assert torch.equal(copied["conjugate"], torch.tensor([1 - 2j]))
    assert copied["half"].dtype == torch.float16
    assert type(copied["parameter"]) is torch.nn.Parameter
    assert not copied["parameter"].requires_grad
    assert copied["learns"].requires_grad


def test_the_next_copy_goes_into_the_same_memory() -> None:
    state = trained()
    staging = Staging()
    first = staging.copy(state).content["optimizer"]["state"][0]["exp_avg"]
    state["optimizer"]["state"][0]["exp_avg"].fill_(5)
    second = staging.copy(state).content["optimizer"]["state"][0]["exp_avg"]
    assert second.data_ptr() == first.data_ptr()
    assert second.eq(5).all()


def test_memory_is_let_go_when_the_state_shrinks_and_no_two_tensors_get_one_piece() -> None:
    staging = Staging()
    staging.copy({"a": torch.ones(1000), "b": torch.ones(1000)})
    copied = staging.copy({"a": torch.full((1000,), 2.0)}).content
    assert copied["a"].eq(2).all()
    both = staging.copy({"a": torch.full((1000,), 3.0), "b": torch.full((1000,), 4.0)}).content
    assert both["a"].eq(3).all() and both["b"].eq(4).all()


def test_a_tensor_that_learned_lends_its_memory_to_one_that_does_not() -> None:
    staging = Staging()
    staging.copy({"a": torch.ones(4, requires_grad=True)})
    assert not staging.copy({"a": torch.ones(4)}).content["a"].requires_grad
