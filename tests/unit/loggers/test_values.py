from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
import torch

from harness.errors import ConfigError
from harness.loggers.late import LateNumber
from harness.loggers.values import (
    check_name,
    check_tensor,
    plain_params,
    resolve,
    tensor_value,
    to_number,
)


@pytest.mark.parametrize("name", ["loss", "train/loss", "größe", "a b", "x" * 256, "null", 'say "hi"'])
def test_usable_names_are_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "0 characters"),
        ("x" * 257, "257 characters"),
        ("a\nb", "control"),
        ("a\x1b[31m", "control"),
        ("a\x00", "control"),
        ("a\u202eb", "control"),
        ("a\ud800", "control"),
        ("step", "taken"),
        ("time", "taken"),
        (3, "int"),
        (None, "NoneType"),
    ],
)
def test_unusable_names_are_refused_with_the_reason(name: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        check_name(name)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (True, 1),
        (3, 3),
        (0.5, 0.5),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), 1),
        (np.array(0.5), 0.5),
        (np.array([[2]]), 2),
        (Fraction(1, 4), 0.25),
    ],
)
def test_numbers_of_any_make_become_plain_ones(value: object, number: float) -> None:
    plain = to_number("x", value)
    assert plain == number
    assert type(plain) in (int, float)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, ["'acc'", "None", "leave it out"]),
        ("0.5", ["'acc'", "str", "log_text"]),
        (1j, ["'acc'", "complex", "real part"]),
        (np.complex64(1j), ["'acc'", "complex64"]),
        ([0.5], ["'acc'", "list"]),
        (np.zeros((2, 3)), ["'acc'", "ndarray", "(2, 3)", "mean"]),
        (np.datetime64("2026-01-01"), ["'acc'", "datetime64"]),
        ({}, ["'acc'", "dict"]),
    ],
)
def test_what_is_no_number_is_refused_with_its_type_and_what_to_do(value: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        to_number("acc", value)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(0.5),
        torch.tensor([0.5]),
        torch.tensor([[0.5]], dtype=torch.bfloat16),
        torch.tensor(0.5, dtype=torch.float64),
        torch.tensor(0.5, requires_grad=True),
    ],
)
def test_tensors_of_one_element_are_read_at_once_or_later_to_the_same_number(tensor: torch.Tensor) -> None:
    now: dict[str, float] = {}
    assert tensor_value(now, "loss", tensor, lambda _: False) is None
    later: dict[str, float] = {"a": 1.0}
    deferred = tensor_value(later, "loss", tensor, lambda _: True)
    later["b"] = 2.0
    assert deferred is not None
    resolve([deferred])
    assert now == {"loss": 0.5}
    assert list(later.items()) == [("a", 1.0), ("loss", 0.5), ("b", 2.0)]


def test_integer_and_bool_tensors_become_integers() -> None:
    values: dict[str, float] = {}
    deferred = [
        tensor_value(values, "count", torch.tensor(2**60 + 1), lambda _: True),
        tensor_value(values, "flag", torch.tensor(True), lambda _: True),
    ]
    resolve([item for item in deferred if item])
    tensor_value(values, "now", torch.tensor(True), lambda _: False)
    assert values == {"count": 2**60 + 1, "flag": 1, "now": 1}
    assert {type(value) for value in values.values()} == {int}


def test_a_deferred_tensor_keeps_the_value_it_had_when_logged() -> None:
    values: dict[str, float] = {}
    running = torch.tensor(1.0)
    deferred = tensor_value(values, "loss", running, lambda _: True)
    running.add_(41)
    assert deferred is not None
    resolve([deferred])
    assert values == {"loss": 1.0}


def test_a_late_number_of_the_cpu_is_there_at_once() -> None:
    number = LateNumber(torch.tensor([[2.5]], requires_grad=True))
    assert number.arrived
    assert number.value() == 2.5


@pytest.mark.parametrize("defer", [True, False])
@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(2, 3), ["(2, 3)", "loss.mean()"]),
        (torch.zeros(0), ["(0,)"]),
        (torch.tensor(1j), ["complex", "real part"]),
    ],
)
def test_tensors_that_are_no_number_are_refused(tensor: torch.Tensor, words: list[str], defer: bool) -> None:
    with pytest.raises(ConfigError) as caught:
        tensor_value({}, "loss", tensor, lambda _: defer)
    assert all(word in str(caught.value) for word in words)


def test_a_tensor_without_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="meta"):
        check_tensor("loss", torch.zeros(1, device="meta"))


def test_params_are_flattened_and_everything_else_becomes_text() -> None:
    params = {
        "lr": 0.1,
        "on": True,
        "optimizer": {"name": "sgd", "betas": (0.9, 0.99), "deep": MappingProxyType({"x": 1})},
        "none": None,
        "empty": {},
        3: 4,
    }
    assert plain_params(params) == {
        "lr": 0.1,
        "on": True,
        "optimizer.name": "sgd",
        "optimizer.betas": "(0.9, 0.99)",
        "optimizer.deep.x": 1,
        "none": "None",
        "empty": "{}",
        "3": 4,
    }


def test_params_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(ConfigError, match="list"):
        plain_params([("lr", 0.1)])  # type: ignore[arg-type]


def test_logging_plain_numbers_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from harness.loggers.fanout import LogFanout\n"
        "from harness.loggers.writer import WriterThread\n"
        "from harness.loggers import make_logger\n"
        "import harness.loggers.tensorboard, harness.loggers.jsonl, harness.loggers.text\n"
        "names = ('jsonl', 'text', 'tensorboard', 'progress')\n"
        "fan = LogFanout([make_logger(name) for name in names], WriterThread())\n"
        "fan.log(1, {'loss': 0.5, 'flag': True})\n"
        "print([m for m in ('torch', 'rich', 'tensorboard', 'google.protobuf') if m in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
