from __future__ import annotations

import sys

import pytest
import torch
from torch.utils.data import TensorDataset

from harness.errors import ConfigError, MissingExtraError
from harness.workloads.digits import accuracy, build, load_digits_split

pytest.importorskip("sklearn")


def rows(data: TensorDataset) -> set[bytes]:
    return {image.numpy().tobytes() for image, _ in data}


def test_split_has_every_picture_once_and_is_the_same_whatever_the_seed() -> None:
    torch.manual_seed(1)
    first = load_digits_split()
    torch.manual_seed(2)
    second = load_digits_split()
    assert len(first.train) + len(first.test) == 1797
    assert not rows(first.train) & rows(first.test)
    assert all(torch.equal(a, b) for a, b in zip(first.test.tensors, second.test.tensors, strict=True))


def test_loading_the_data_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    load_digits_split()
    assert torch.equal(before, torch.get_rng_state())


def test_pictures_are_between_0_and_1_and_all_digits_are_in_both_parts() -> None:
    for images, digits in (part.tensors for part in load_digits_split()):
        assert images.shape[1:] == (1, 8, 8)
        assert images.min() == 0
        assert images.max() == 1
        assert sorted(set(digits.tolist())) == list(range(10))


def test_default_run_is_long_enough_for_the_quick_recipe() -> None:
    workload = build()
    epochs = int(workload.max_duration.removesuffix("ep"))
    assert epochs * len(workload.train_dataloader) >= 100


def test_options_reach_the_loader_the_optimizer_and_the_model() -> None:
    workload = build(batch_size=100, lr=0.25, width=4)
    batch = next(iter(workload.train_dataloader))
    assert len(batch[0]) == workload.get_num_samples(batch) == 100
    assert workload.optimizer(workload.model).param_groups[0]["lr"] == 0.25
    assert workload.model.conv1.out_channels == 4
    assert workload.model(batch[0]).shape == (100, 10)


def test_accuracy_is_the_share_of_right_answers() -> None:
    outputs = torch.eye(10)[[1, 2, 3, 4]]
    assert accuracy(outputs, (torch.zeros(4), torch.tensor([1, 2, 3, 9]))).item() == 0.75


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": -1}, {"lr": 0.0}])
def test_value_out_of_range_is_refused_by_name(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        build(**options)


def test_missing_scikit_learn_is_answered_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "profiling-harness\[digits\]"'):
        build()
