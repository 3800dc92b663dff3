from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from harness.checkpoint.rng import Generator, collect_rng, generator_state, restore_generator, restore_rng
from harness.errors import CheckpointError


@pytest.fixture(autouse=True)
def _global_generators_are_left_alone() -> Iterator[None]:
    before = collect_rng()
    yield
    restore_rng(before)


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def draw() -> list[object]:
    # an odd number of normal draws: both python and numpy keep the second of a pair for later
    return [
        random.random(),
        random.gauss(0, 1),
        random.getrandbits(100),
        float(np.random.rand()),
        float(np.random.standard_normal()),
        np.random.permutation(10).tolist(),
        torch.rand(3).tolist(),
        torch.randperm(10).tolist(),
    ]


def test_the_same_numbers_are_drawn_after_a_restore() -> None:
    draw()
    state = saved_and_loaded(collect_rng())
    drawn = draw()
    assert draw() != drawn
    restore_rng(state)
    assert draw() == drawn


def test_collecting_moves_no_generator() -> None:
    state = collect_rng()
    first = draw()
    restore_rng(state)
    collect_rng()
    assert draw() == first


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda: torch.Generator().manual_seed(3), lambda own: torch.rand(1, generator=own).item()),
        (lambda: random.Random(3), lambda own: own.gauss(0, 1)),
        (lambda: np.random.default_rng(3), lambda own: own.standard_normal()),
        (lambda: np.random.Generator(np.random.Philox(3)), lambda own: own.standard_normal()),
        (lambda: np.random.RandomState(3), lambda own: own.standard_normal()),
    ],
    ids=["torch", "python", "numpy", "numpy-philox", "numpy-legacy"],
)
def test_a_generator_of_ones_own_goes_on_where_it_was(
    make: Callable[[], Generator], number: Callable[[Any], float]
) -> None:
    own = make()
    number(own)
    state = saved_and_loaded(generator_state(own))
    expected = [number(own) for _ in range(5)]
    fresh = make()
    restore_generator(fresh, state, "sampler.rng")
    assert [number(fresh) for _ in range(5)] == expected


def test_a_generator_of_another_kind_is_refused_by_name() -> None:
    state = generator_state(random.Random(1))
    with pytest.raises(CheckpointError, match=r"sampler\.rng is a Generator and was a Random"):
        restore_generator(torch.Generator(), state, "sampler.rng")


@pytest.mark.parametrize("broken", [{}, {"python": 1, "numpy": 2, "torch": 3, "cuda": []}])
def test_a_state_that_is_none_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="random number states do not fit"):
        restore_rng(broken)


def test_the_state_of_a_missing_gpu_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    num_here = torch.cuda.device_count()
    state = collect_rng()
    state["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * (num_here + 1)
    if num_here:
        pytest.skip("the states would be real ones here")
    restore_rng(state)
    assert "1 GPUs and this process sees 0" in caplog.text
