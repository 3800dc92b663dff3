from __future__ import annotations

import dataclasses
import enum
import io
from collections import Counter, OrderedDict, defaultdict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.checkpoint.plain import check_plain
from harness.errors import CheckpointError

Point = namedtuple("Point", "x y")


@dataclasses.dataclass
class Custom:
    value: int = 1


class Level(enum.IntEnum):
    HIGH = 2


class Tagged(torch.Tensor):
    pass


def loads(obj: object) -> bool:
    file = io.BytesIO()
    torch.save(obj, file)
    file.seek(0)
    try:
        torch.load(file, weights_only=True)
    except Exception:
        return False
    return True


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(min_size=1, max_size=5)
)
keys = st.text(max_size=5) | st.integers() | st.tuples(st.integers(), st.text(max_size=2))
states = st.recursive(
    scalars | st.just(torch.Size([2, 3])) | st.just(torch.float16) | st.just(torch.device("cpu")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(states)
def test_what_passes_can_be_loaded(state: object) -> None:
    check_plain(state, "state")
    assert loads(state)


@pytest.mark.parametrize(
    "obj",
    [
        {"a", "b"},
        bytearray(b"x"),
        Counter("aab"),
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(3).to_sparse(),
        torch.nn.BatchNorm1d(2).state_dict(),
    ],
    ids=lambda obj: type(obj).__name__,
)
def test_the_rarer_plain_types_pass_and_load(obj: object) -> None:
    check_plain({"x": [obj]}, "state")
    assert loads({"x": [obj]})


@pytest.mark.parametrize(
    "obj",
    [
        Custom(),
        np.float64(1.0),
        np.ones(2),
        Level.HIGH,
        Point(1, 2),
        defaultdict(list),
        frozenset({1}),
        print,
        torch.nn.Linear(1, 1),
        torch.ones(2).as_subclass(Tagged),
        range(3),
    ],
    ids=lambda obj: type(obj).__name__,
)
def test_what_no_safe_load_reads_is_refused_with_its_place(obj: Any) -> None:
    with pytest.raises(CheckpointError) as error:
        check_plain({"ema": {"history": [1, obj]}}, "state")
    assert error.value.message.startswith('state["ema"]["history"][1] is a ')
    assert type(obj).__qualname__ in error.value.message
    assert not loads([obj])


def test_a_custom_object_as_a_key_or_in_a_modules_metadata_is_found() -> None:
    with pytest.raises(CheckpointError, match="HIGH"):
        check_plain({Level.HIGH: 1}, "state")
    state = torch.nn.Linear(1, 1).state_dict()
    state._metadata[""]["extra"] = Custom()  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r'\["_metadata"\]\[""\]\["extra"\] is a .*Custom'):
        check_plain(state, "state")


def test_empty_bytes_are_refused_because_torch_refuses_them() -> None:
    with pytest.raises(CheckpointError, match=r'state\["x"\] is an empty bytes object'):
        check_plain({"x": b""}, "state")
    assert not loads({"x": b""})


def test_a_type_registered_as_safe_passes() -> None:
    with torch.serialization.safe_globals([Custom]):
        check_plain([Custom()], "state")
        assert loads([Custom()])


def test_endless_nesting_is_an_error_and_no_crash() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(CheckpointError, match="nested deeper than 100 levels"):
        check_plain(endless, "state")


def test_the_states_of_torchs_own_objects_are_plain() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    objects: list[Any] = [model, torch.amp.GradScaler("cpu")]
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop):
        optimizer = kind(model.parameters(), lr=0.1)
        model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
        scheduler = torch.optim.lr_scheduler
        objects += [
            optimizer,
            scheduler.CosineAnnealingLR(optimizer, 10),
            scheduler.ReduceLROnPlateau(optimizer),
            scheduler.LambdaLR(optimizer, lambda step: 0.5),
            scheduler.SequentialLR(
                optimizer,
                [scheduler.LinearLR(optimizer), scheduler.StepLR(optimizer, 3)],
                milestones=[2],
            ),
        ]
    for obj in objects:
        check_plain(obj.state_dict(), type(obj).__name__)
        assert loads(obj.state_dict())
