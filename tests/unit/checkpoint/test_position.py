"""An uninterrupted run is compared, bit by bit, with one that was stopped after each batch and resumed elsewhere.

The runs draw dropout from the global generators and their data from every kind of sampler. "Elsewhere" is a new
loader and generators that stand somewhere else, as in a new process.
"""

from __future__ import annotations

import gc
import io
import random
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)

from harness.checkpoint.position import EpochPosition, EpochStart, open_epoch
from harness.checkpoint.rng import collect_rng, restore_rng
from harness.errors import CheckpointError

NUM_ITEMS = 11
BATCH_SIZE = 4  # 3 batches an epoch, the last one smaller
Loader = Iterable[Any]


@pytest.fixture(autouse=True)
def _global_generators_are_left_alone() -> Iterator[None]:
    before = collect_rng()
    yield
    restore_rng(before)


class Items(Dataset[int]):
    """Numbers, and which of them were read in this process."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return NUM_ITEMS

    def __getitem__(self, index: int) -> int:
        self.read.append(int(index))
        return int(index)


class Augmented(Items):
    """Draws from the global generators for every item, as augmentation in the main process does."""

    def __getitem__(self, index: int) -> float:  # type: ignore[override]
        return super().__getitem__(index) + random.random() + np.random.rand() + torch.rand(1).item()


class PythonShuffle(Sampler[int]):
    """Draws when its iterator is made, and not when it is first asked."""

    def __init__(self) -> None:
        pass

    def __len__(self) -> int:
        return NUM_ITEMS

    def __iter__(self) -> Iterator[int]:
        order = list(range(NUM_ITEMS))
        random.shuffle(order)
        return iter(order)


class OneByOne(PythonShuffle):
    """Draws each index when it is asked for it."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(NUM_ITEMS):
            yield random.randrange(NUM_ITEMS)


class OwnState(PythonShuffle):
    """Goes on drawing from generators of its own, epoch after epoch."""

    def __init__(self) -> None:
        self.rng = random.Random(1)
        self.numpy_rng = np.random.default_rng(1)

    def __iter__(self) -> Iterator[int]:
        order = self.numpy_rng.permutation(NUM_ITEMS).tolist()
        self.rng.shuffle(order)
        return iter(order)


def own(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distributed() -> DistributedSampler[int]:
    return DistributedSampler(Items(), num_replicas=2, rank=1, seed=3)


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "in-order": dict,
    "shuffle": lambda: {"shuffle": True},
    "shuffle-drop-last": lambda: {"shuffle": True, "drop_last": True},
    "shuffle-own-generator": lambda: {"shuffle": True, "generator": own()},
    "generator-of-sampler": lambda: {"sampler": RandomSampler(range(NUM_ITEMS), generator=own())},
    "replacement": lambda: {"sampler": RandomSampler(range(NUM_ITEMS), replacement=True, num_samples=10)},
    "weighted": lambda: {"sampler": WeightedRandomSampler([1.0] * NUM_ITEMS, 10)},
    "python-shuffle": lambda: {"sampler": PythonShuffle()},
    "python-one-by-one": lambda: {"sampler": OneByOne()},
    "own-state": lambda: {"sampler": OwnState()},
    "batch-sampler": lambda: {
        "batch_sampler": BatchSampler(RandomSampler(range(NUM_ITEMS), generator=own()), BATCH_SIZE, False)
    },
    "no-batches": lambda: {"batch_size": None, "shuffle": True},
    "no-batches-own-generator": lambda: {"batch_size": None, "shuffle": True, "generator": own()},
    "distributed": lambda: {"sampler": distributed()},
}


def make_loader(kind: str, workers: int = 0, *, persistent: bool = False, data: Dataset[Any] | None = None) -> Any:
    options = {"batch_size": BATCH_SIZE, **KINDS[kind]()}
    if "batch_sampler" in options:
        del options["batch_size"]
    if workers:
        options |= {"num_workers": workers, "persistent_workers": persistent}
    return DataLoader(Items() if data is None else data, **options)


def train_step(batch: Any) -> tuple[Any, ...]:
    """What a step leaves behind: the batch it saw, and what it drew from the three generators."""
    seen = batch.tolist() if isinstance(batch, torch.Tensor) else batch
    dropped = torch.nn.functional.dropout(torch.ones(8), 0.5)
    return seen, dropped.tolist(), random.random(), float(np.random.rand())


class Run:
    """A training run over `num_epochs`, that can be saved after any step and go on in another object."""

    def __init__(self, loader: Loader, num_epochs: int = 3) -> None:
        self.loader = loader
        self.num_epochs = num_epochs
        self.epoch = 0
        self.batch_in_epoch = 0
        self.start: EpochStart | None = None
        self.trace: list[Any] = []
        self.saved: list[bytes] = []

    def save(self) -> None:
        start = self.start
        if self.batch_in_epoch == 0:
            start = EpochStart.capture(self.loader, epoch=self.epoch)
        file = io.BytesIO()
        position = EpochPosition(start=start, batch_in_epoch=self.batch_in_epoch).to_state()
        torch.save({"epoch": self.epoch, "position": position, "rng": collect_rng()}, file)
        self.saved.append(file.getvalue())

    def run(self, resumed: bytes | None = None) -> list[Any]:
        state = None if resumed is None else torch.load(io.BytesIO(resumed), weights_only=True)
        position = None
        if state is not None:
            position = EpochPosition.from_state(state["position"])
            self.epoch, self.batch_in_epoch = state["epoch"], position.batch_in_epoch
        while self.epoch < self.num_epochs:
            for batch in self._open(position, None if state is None else state["rng"]):
                self.trace.append(train_step(batch))
                self.batch_in_epoch += 1
                self.save()
            self.epoch, self.batch_in_epoch, position = self.epoch + 1, 0, None
            self.save()
        return self.trace

    def _open(self, position: EpochPosition | None, rng: Any) -> Iterator[Any]:
        skip = self.batch_in_epoch
        if position is None or not skip:
            if position is not None:
                restore_rng(rng)
            self.start = EpochStart.capture(
                self.loader, epoch=self.epoch, resumed=None if position is None else position.start
            )
            return open_epoch(self.loader, self.start)
        self.start = position.start
        iterator = open_epoch(self.loader, self.start, skip_batches=skip)
        restore_rng(rng)
        return iterator


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def assert_resumes_bit_equal(make: Callable[[], Loader], points: Iterable[int] | None = None) -> None:
    """Stop after each point (a step or an end of an epoch), go on with a new loader, compare all that follows."""
    seed(1)
    whole = Run(make())
    expected = whole.run()
    done_before = [len(whole.trace[: _steps_at(whole, index)]) for index in range(len(whole.saved))]
    for point in range(len(whole.saved)) if points is None else points:
        seed(99 + point)
        rest = Run(make()).run(whole.saved[point])
        assert rest == expected[done_before[point] :], f"resumed at point {point}"


def _steps_at(run: Run, index: int) -> int:
    """How many steps were done at the index-th save: saves are made after each step and after each epoch."""
    state = [torch.load(io.BytesIO(saved), weights_only=True) for saved in run.saved[: index + 1]]
    return sum(1 for saved in state if saved["position"]["batch_in_epoch"] > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_at_any_step_is_bit_equal(kind: str) -> None:
    assert_resumes_bit_equal(lambda: make_loader(kind))


@pytest.mark.parametrize("kind", ["in-order", "shuffle", "shuffle-own-generator", "own-state", "batch-sampler"])
def test_augmentation_in_the_main_process_goes_on_bit_equal(kind: str) -> None:
    assert_resumes_bit_equal(lambda: make_loader(kind, data=Augmented()))


@pytest.mark.parametrize(
    "kind", ["shuffle", "shuffle-own-generator", "python-shuffle", "python-one-by-one", "no-batches", "batch-sampler"]
)
def test_a_run_with_workers_resumed_is_bit_equal(kind: str) -> None:
    # in the middle and at the end of the second epoch, before and after the loader has said that it ended
    points = [4, 6, 7] if "no-batches" not in kind else [NUM_ITEMS + 3]
    assert_resumes_bit_equal(lambda: make_loader(kind, workers=2), points)


@pytest.mark.parametrize("kind", ["shuffle", "shuffle-own-generator", "python-shuffle"])
def test_persistent_workers_draw_their_seed_once_in_a_run(kind: str) -> None:
    # in the first epoch, at its end, and in the second, where the uninterrupted run draws no seed for workers
    assert_resumes_bit_equal(lambda: make_loader(kind, workers=2, persistent=True), [0, 3, 4])


def test_a_loader_with_persistent_workers_is_freed_at_once() -> None:
    # In a reference cycle it would wait for the garbage collector, and then 5 s for each worker.
    loader = make_loader("shuffle", workers=2, persistent=True)
    start = EpochStart.capture(loader, epoch=0)
    start.warm = True
    list(open_epoch(loader, start, skip_batches=1))
    freed = weakref.ref(loader)
    gc.disable()
    try:
        del loader, start
        assert freed() is None
    finally:
        gc.enable()


def test_twice_resumed_is_bit_equal() -> None:
    seed(1)
    whole = Run(make_loader("shuffle-own-generator"))
    expected = whole.run()
    seed(2)
    second = Run(make_loader("shuffle-own-generator"))
    second.run(whole.saved[4])  # after step 4, in the second epoch
    seed(3)
    third = Run(make_loader("shuffle-own-generator"))
    assert third.run(second.saved[0]) == expected[5:]  # saved after step 5, in the same epoch


def test_equality_fails_without_the_epochs_start() -> None:
    seed(1)
    whole = Run(make_loader("shuffle"))
    expected = whole.run()
    state = torch.load(io.BytesIO(whole.saved[0]), weights_only=True)
    seed(2)
    state["position"]["start"]["rng"] = collect_rng()
    file = io.BytesIO()
    torch.save(state, file)
    assert Run(make_loader("shuffle")).run(file.getvalue()) != expected[1:]


@pytest.mark.parametrize("kind", ["shuffle", "batch-sampler", "python-one-by-one"])
@pytest.mark.parametrize("skip", [1, 2, 3])
def test_nothing_that_is_skipped_is_read(kind: str, skip: int) -> None:
    first = make_loader(kind)
    start = EpochStart.capture(first, epoch=0)
    list(open_epoch(first, start))
    order = first.dataset.read
    loader = make_loader(kind)
    resumed = EpochPosition.from_state(EpochPosition(start=start, batch_in_epoch=skip).to_state())
    iterator = open_epoch(loader, resumed.start, skip_batches=skip)
    assert loader.dataset.read == []
    list(iterator)
    assert loader.dataset.read == order[skip * BATCH_SIZE :]


class WorkerItems(Items):
    """Gives the number and says that a worker process read it."""

    def __getitem__(self, index: int) -> int:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        if index == 0:
            raise ValueError("item 0 was read")
        return int(index)


def test_workers_read_nothing_that_is_skipped() -> None:
    loader = make_loader("in-order", workers=2, data=WorkerItems())
    start = EpochStart.capture(loader, epoch=0)
    batches = [batch.tolist() for batch in open_epoch(loader, start, skip_batches=1)]
    assert batches == [[4, 5, 6, 7], [8, 9, 10]]


def test_the_loader_itself_is_not_changed() -> None:
    loader = make_loader("shuffle")
    before = dict(vars(loader))
    start = EpochStart.capture(loader, epoch=0)
    list(open_epoch(loader, start, skip_batches=2))
    assert vars(loader) == before
    assert sorted(torch.cat(list(loader)).tolist()) == list(range(NUM_ITEMS))


def test_a_sampler_that_goes_by_the_epochs_number_is_told_it() -> None:
    loader = make_loader("distributed")
    orders = []
    for epoch in (0, 1, 0):
        start = EpochStart.capture(loader, epoch=epoch)
        orders.append([batch.tolist() for batch in open_epoch(loader, start)])
    assert orders[0] == orders[2] != orders[1]


class Numbers(IterableDataset[int]):
    def __init__(self, num_items: int = NUM_ITEMS) -> None:
        self.num_items = num_items
        self.num_read = 0

    def __iter__(self) -> Iterator[int]:
        for number in random.sample(range(self.num_items), self.num_items):
            self.num_read += 1
            yield number


def test_an_iterable_dataset_is_read_again_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert_resumes_bit_equal(lambda: DataLoader(Numbers(), batch_size=BATCH_SIZE))
    assert "the dataloader (DataLoader) cannot skip: 2 batches are read again and thrown away" in caplog.text


def test_any_iterable_is_read_again(caplog: pytest.LogCaptureFixture) -> None:
    class Plain:
        def __iter__(self) -> Iterator[list[int]]:
            for _ in range(4):
                yield [random.randrange(100)]

    assert_resumes_bit_equal(Plain)
    assert "(Plain) cannot skip" in caplog.text


def test_a_list_of_batches_is_skipped_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert_resumes_bit_equal(lambda: [[1], [2], [3]])
    assert caplog.text == ""


class StatefulLoader:
    """Keeps its own place, as torchdata's StatefulDataLoader does, and counts what it reads."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.num_yielded = 0
        self.num_read = 0
        self._goes_on = False

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self.order), "num_yielded": self.num_yielded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.num_yielded = list(state["order"]), state["num_yielded"]
        self._goes_on = self.num_yielded > 0

    def __iter__(self) -> Iterator[list[int]]:
        if not self._goes_on:
            self.order, self.num_yielded = random.sample(range(5), 5), 0
        self._goes_on = False
        while self.num_yielded < len(self.order):
            self.num_yielded += 1
            self.num_read += 1
            yield [self.order[self.num_yielded - 1]]
        self.num_yielded = 0


def test_a_loader_with_a_state_goes_by_it(caplog: pytest.LogCaptureFixture) -> None:
    made: list[StatefulLoader] = []

    def make() -> StatefulLoader:
        made.append(StatefulLoader())
        return made[-1]

    assert_resumes_bit_equal(make)
    assert caplog.text == ""
    assert [loader.num_read for loader in made[:4]] == [15, 14, 13, 12]


class Shipping(DataLoader[Any]):
    """Iterates another loader, as wrappers that move batches to a device do."""

    def __init__(self, inner: DataLoader[Any]) -> None:
        super().__init__(inner.dataset, batch_size=BATCH_SIZE)
        self.inner = inner

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from self.inner


def test_a_loader_that_does_not_use_its_sampler_is_read_again(caplog: pytest.LogCaptureFixture) -> None:
    assert_resumes_bit_equal(lambda: Shipping(make_loader("shuffle")))
    assert "(Shipping) cannot skip" in caplog.text


def test_a_loader_of_another_length_is_refused() -> None:
    start = EpochStart.capture(make_loader("shuffle"), epoch=0)
    other = DataLoader(Items(), batch_size=2, shuffle=True)
    with pytest.raises(CheckpointError, match=r"has 6 batches and had 3 .* after batch 2"):
        open_epoch(other, start, skip_batches=2)


@pytest.mark.parametrize("make", [lambda: DataLoader(Numbers(4)), lambda: [[1]] * 4])
def test_data_that_ends_too_early_is_refused(make: Callable[[], Loader]) -> None:
    start = EpochStart.capture(make(), epoch=0)
    with pytest.raises(CheckpointError, match="ended after 4 batches, and the checkpoint was saved after 5"):
        open_epoch(make(), start, skip_batches=5)


def test_other_generators_are_refused_by_name() -> None:
    start = EpochStart.capture(make_loader("shuffle-own-generator"), epoch=0)
    with pytest.raises(CheckpointError, match=r"now none; then loader\.generator"):
        open_epoch(make_loader("shuffle"), start, skip_batches=1)
    with pytest.raises(CheckpointError, match=r"now none; then loader\.generator"):
        EpochStart.capture(make_loader("shuffle"), epoch=0, resumed=start)


def test_a_loader_that_lost_its_state_dict_is_refused() -> None:
    loader = StatefulLoader()
    start = EpochStart.capture(loader, epoch=0)
    next(open_epoch(loader, start))
    saved = EpochPosition(start=start, batch_in_epoch=1).to_state()
    with pytest.raises(CheckpointError, match="had a state_dict when the checkpoint was saved; list takes none"):
        open_epoch([1, 2], EpochPosition.from_state(saved).start, skip_batches=1)


def test_a_place_in_an_unknown_epoch_is_refused() -> None:
    with pytest.raises(CheckpointError, match="batch_in_epoch=3 without the epoch's start"):
        EpochPosition(start=None, batch_in_epoch=3)
    with pytest.raises(ValueError, match="skip_batches=3 needs the epoch's start"):
        open_epoch([1], None, skip_batches=3)


@pytest.mark.parametrize("state", [{}, {"start": {"epoch": 1}, "batch_in_epoch": 1}, {"start": None}])
def test_a_position_that_cannot_be_read_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="place in the data cannot be read"):
        EpochPosition.from_state(state)
