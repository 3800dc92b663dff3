from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from harness.checkpoint.export import check_exporter, module_weights, write_weights
from harness.errors import CheckpointError, MissingExtraError

METADATA = {"format": "pt", "run_name": "foo", "step": "7"}


class Tied(nn.Module):
    """Two names for one tensor, a transposed one, a view into a larger one, a buffer and an empty one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.turned = nn.Parameter(torch.randn(4, 6).t())
        self.part = nn.Parameter(torch.randn(10)[2:5])
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("nothing", torch.empty(0, 2, dtype=torch.bfloat16))


class WithExtra(nn.Linear):
    """A module that saves something that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"scale": 2.0}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"scale": 2.0}


def reloaded(tmp_path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The state as a checkpoint gives it back."""
    torch.save(state, tmp_path / "saved.pt")
    loaded: dict[str, Any] = torch.load(tmp_path / "saved.pt", weights_only=True)
    return loaded


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def test_a_models_weights_come_back_bit_for_bit_and_fit_the_model(tmp_path: Path) -> None:
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters())
    model.head(model.embedding(torch.tensor([1]))).sum().backward()
    optimizer.step()
    saved = reloaded(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    path = tmp_path / "w.safetensors"
    assert write_weights(path, module_weights(saved), METADATA) == []
    with safe_open(path, "pt") as file:
        assert file.metadata() == METADATA
    weights = load_file(path)
    assert equal(weights, dict(model.state_dict()))
    Tied().load_state_dict(weights)
    # 15 + 15 + 24 + 3 floats and an integer of 8 bytes: of the view only its own part, of tied ones a copy each
    assert path.stat().st_size < 57 * 4 + 8 + 1000


def test_several_modules_get_their_names_before_the_weights(tmp_path: Path) -> None:
    modules = {"generator": nn.Linear(2, 3), "critic": nn.Sequential(nn.Linear(3, 1))}
    saved = reloaded(tmp_path, {name: module.state_dict() for name, module in modules.items()})
    write_weights(tmp_path / "w.safetensors", module_weights(saved), METADATA)
    weights = load_file(tmp_path / "w.safetensors")
    assert sorted(weights) == ["critic.0.bias", "critic.0.weight", "generator.bias", "generator.weight"]
    assert torch.equal(weights["generator.weight"], modules["generator"].weight)


def test_other_objects_are_no_modules_even_if_they_hold_tensors_only(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    saved = {"model": model.state_dict(), "callback0-Mean": {"total": torch.tensor(1.0)}, "scheduler0": {"last": 3}}
    assert set(module_weights(reloaded(tmp_path, saved))) == {"weight", "bias"}


def test_weights_without_torchs_version_numbers_are_found_as_well() -> None:
    saved = {"model": dict(nn.Linear(2, 1).state_dict()), "optimizer0": {"state": {}, "param_groups": []}}
    assert set(module_weights(saved)) == {"weight", "bias"}


def test_without_a_module_there_is_nothing_to_export() -> None:
    with pytest.raises(CheckpointError, match="'optimizer0', 'empty'"):
        module_weights({"optimizer0": {"state": {}, "param_groups": []}, "empty": {}})


def test_what_is_no_tensor_is_named_and_the_plain_form_holds_it(tmp_path: Path) -> None:
    model = WithExtra(2, 1)
    weights = module_weights(reloaded(tmp_path, {"model": model.state_dict()}))
    assert write_weights(tmp_path / "w.safetensors", weights, METADATA) == ["_extra_state"]
    assert set(load_file(tmp_path / "w.safetensors")) == {"weight", "bias"}
    assert write_weights(tmp_path / "w.pt", weights, METADATA) == []
    WithExtra(2, 1).load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))


def test_the_plain_form_is_a_state_dict(tmp_path: Path) -> None:
    model = Tied()
    write_weights(tmp_path / "w.pt", module_weights({"model": model.state_dict()}), METADATA)
    loaded = torch.load(tmp_path / "w.pt", weights_only=True)
    assert equal(loaded, dict(model.state_dict()))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, name: str, no_file_larger_than: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    weights = module_weights({"model": nn.Linear(500, 500).state_dict()})
    with no_file_larger_than(100_000), pytest.raises(CheckpointError, match=f"could not be written to .*{name}"):
        write_weights(path, weights, METADATA)
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [(name, b"old")]


def test_a_tensor_that_the_format_does_not_take_is_an_error(tmp_path: Path) -> None:
    weights = {"weight": torch.eye(2).to_sparse()}
    with pytest.raises(CheckpointError, match="w.safetensors"):
        write_weights(tmp_path / "w.safetensors", weights, METADATA)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_answered_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingExtraError, match=r'pip install "profiling-harness\[safetensors\]"'):
        check_exporter(Path("w.safetensors"))
    check_exporter(Path("w.pt"))
