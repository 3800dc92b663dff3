from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.checkpoint.state import FORMAT, NewerFormatError, check_state, gather, restore
from harness.errors import CheckpointError


class Counting:
    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["value"]


def test_what_is_gathered_is_restored() -> None:
    model, counting = torch.nn.Linear(2, 3), Counting()
    counting.value = 7
    saved = gather({"model": model, "counting": counting})
    other, fresh = torch.nn.Linear(2, 3), Counting()
    restore(saved, {"model": other, "counting": fresh})
    assert torch.equal(other.weight, model.weight)
    assert fresh.value == 7


def test_names_that_differ_are_listed_and_nothing_is_touched() -> None:
    counting = Counting()
    with pytest.raises(CheckpointError) as error:
        restore(
            {"counting": {"value": 3}, "ema": {}, "scaler": {}},
            {"counting": counting, "optimizer": Counting(), "another": Counting()},
        )
    assert "missing in the checkpoint: another, optimizer;" in error.value.message
    assert "not in this run: ema, scaler" in error.value.message
    assert counting.value == 0


def test_another_architecture_is_an_error_with_a_short_cause() -> None:
    saved = gather({"model": torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(50)])})
    with pytest.raises(CheckpointError, match=r"state\['model'\] \(Linear\).*Missing key") as error:
        restore(saved, {"model": torch.nn.Linear(2, 2)})
    assert len(error.value.message) < 600
    assert "\n" not in error.value.message
    assert isinstance(error.value.__cause__, RuntimeError)


def test_an_object_that_does_not_take_its_state_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"state\['counting'\] \(Counting\).*value"):
        restore({"counting": {}}, {"counting": Counting()})


def test_a_state_is_taken_back_as_it_was_built(make_state: Callable[..., dict[str, Any]]) -> None:
    state = make_state(3)
    assert check_state(state, "x.pt", run_name="foo", rank=0) is state


def test_a_newer_format_says_so(make_state: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(NewerFormatError, match=rf"x\.pt has format {FORMAT + 1}.*reads up to {FORMAT}"):
        check_state({**make_state(3), "format": FORMAT + 1}, "x.pt")


@pytest.mark.parametrize("loaded", [None, [], {"model": 1}, {"format": "1"}])
def test_what_is_no_checkpoint_is_refused(loaded: object) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint of this harness"):
        check_state(loaded, "x.pt")


@pytest.mark.parametrize("key", ["state", "timestamp", "rng", "position", "run_name"])
def test_a_missing_part_is_named(make_state: Callable[..., dict[str, Any]], key: str) -> None:
    state = make_state(3)
    del state[key]
    with pytest.raises(CheckpointError, match=f"no complete checkpoint: {key} missing"):
        check_state(state, "x.pt")


def test_another_runs_or_ranks_state_is_refused(make_state: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(CheckpointError, match="belongs to run_name 'foo', not 'bar'"):
        check_state(make_state(3), "x.pt", run_name="bar")
    with pytest.raises(CheckpointError, match="belongs to rank 0, not 1"):
        check_state(make_state(3), "x.pt", rank=1)
