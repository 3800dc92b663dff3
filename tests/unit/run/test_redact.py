from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.run.redact import REDACTED, redact_argv, redact_config


@pytest.mark.parametrize(
    "argv",
    [
        ["--api-key", "hunter2"],
        ["--api-key=hunter2"],
        ["-o", "api_key=hunter2"],
        ["-oapi_key=hunter2"],
        ["-o", "apikey=hunter2"],
        ["-o", "wandbToken=hunter2"],
        ["HF_TOKEN=hunter2"],
        ["AWS_SECRET_ACCESS_KEY=hunter2"],
        ["--password", "hunter2"],
        ["--db.password=hunter2"],
        ["--store", "s3://me:hunter2@host/bucket"],
        ["--store=https://hunter2@host/bucket"],
    ],
)
def test_a_secret_on_the_command_line_is_left_out(argv: list[str]) -> None:
    shown = redact_argv(["harness", "train", *argv, "--seed", "1"])
    assert "hunter2" not in json.dumps(shown)
    assert REDACTED in json.dumps(shown)
    assert shown[:2] == ["harness", "train"]
    assert shown[-2:] == ["--seed", "1"]


@pytest.mark.parametrize(
    "argv",
    [
        ["-o", "lr=1"],
        ["-o", "key=5"],
        ["-o", "max_tokens=1000"],
        ["--key-dim", "64"],
        ["--max-duration", "1000tok"],
        ["--tokenizer", "gpt2"],
        ["-o", "tokens_per_batch=1e6"],
        ["-o", "keyboard=us"],
        ["--token", "--resume"],  # an option is no value
        ["key=", "https://host/a@b", "x=y=z"],
    ],
)
def test_what_is_no_secret_stays(argv: list[str]) -> None:
    assert redact_argv(argv) == argv


def test_a_secret_in_the_configuration_is_left_out_at_any_depth() -> None:
    config = {
        "api_key": "hunter2",
        "stores": [{"secret": "hunter2"}, {"url": "s3://me:hunter2@host"}],
        "keys": ["hunter2"],
        "credentials": {"user": "hunter2"},
        "password": 1234,
    }
    shown = json.dumps(redact_config(config))
    assert "hunter2" not in shown
    assert "1234" not in shown


def test_a_configuration_becomes_plain_values() -> None:
    @dataclass
    class Schedule:
        active: int
        where: Path

    config = {
        "schedule": Schedule(active=2, where=Path("a/b")),
        "max_tokens": 100,
        "lr": 0.1,
        "flag": True,
        "none": None,
        "betas": (0.9, 0.99),
        3: "three",
        "type": int,
    }
    assert redact_config(config) == {
        "schedule": {"active": 2, "where": "a/b"},
        "max_tokens": 100,
        "lr": 0.1,
        "flag": True,
        "none": None,
        "betas": [0.9, 0.99],
        "3": "three",
        "type": "<class 'int'>",
    }
