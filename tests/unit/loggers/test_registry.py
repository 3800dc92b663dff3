from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import ConfigError, MissingExtraError
from harness.loggers import BaseLogger, make_logger
from harness.loggers.jsonl import JsonlLogger
from harness.loggers.progress import ProgressLogger
from harness.loggers.tensorboard import TensorBoardLogger
from harness.loggers.text import TextLogger

SOURCE = """
from harness.loggers import BaseLogger

class Mine(BaseLogger):
    name = "mine"

class Nested:
    Inner = Mine

class NeedsUrl(BaseLogger):
    def __init__(self, url):
        self.url = url

class Half:
    name = "half"
    def open(self, run): ...
    def flush(self): ...

class Nameless(BaseLogger):
    name = None

def build():
    return Mine()

def ruled():
    from harness.loggers import RuledLogger
    return RuledLogger("wandb", every="10ba")

ready = Mine()
number = 3
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_loggers.py").write_text(SOURCE)
    (tmp_path / "broken_loggers.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "raising_loggers.py").write_text("raise ValueError('no token')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "their_loggers", raising=False)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("jsonl", JsonlLogger),
        ("text", TextLogger),
        ("tensorboard", TensorBoardLogger),
        ("progress", ProgressLogger),
    ],
)
def test_known_names_give_their_loggers(spec: str, kind: type) -> None:
    logger = make_logger(spec)
    assert type(logger) is kind
    assert logger.name == spec


@pytest.mark.parametrize(
    "path", ["their_loggers:Mine", "their_loggers:Nested.Inner", "their_loggers:build", "their_loggers:ready"]
)
def test_an_import_path_gives_a_logger_of_ones_own(path: str) -> None:
    logger = make_logger(path)
    assert isinstance(logger, BaseLogger)
    assert logger.name == "mine"


def install(site: Path, package: str, **points: str) -> None:
    """What pip leaves of a package: its metadata."""
    info = site / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[harness.loggers]", *lines, ""]))


def test_a_package_brings_a_logger(tmp_path: Path) -> None:
    install(tmp_path, "their-package", mine="their_loggers:Mine", built="their_loggers:build")
    assert make_logger("mine").name == "mine"
    assert make_logger("built").name == "mine"


def test_what_a_package_brings_is_listed_with_the_known_names(tmp_path: Path) -> None:
    install(tmp_path, "their-package", mine="their_loggers:Mine")
    with pytest.raises(ConfigError, match="jsonl, mine, mlflow, progress") as caught:
        make_logger("mina")
    assert caught.value.hint == "did you mean mine?"


def test_an_error_of_ours_in_a_function_of_theirs_keeps_its_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.loggers.service.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        make_logger("their_loggers:ruled")
    assert caught.value.hint == 'pip install "profiling-harness[wandb]"'


def test_a_package_cannot_take_a_name_of_ours(tmp_path: Path) -> None:
    install(tmp_path, "their-package", text="their_loggers:Mine")
    assert type(make_logger("text")) is TextLogger


def test_two_packages_with_one_name_are_an_error(tmp_path: Path) -> None:
    install(tmp_path, "their-package", mine="their_loggers:Mine")
    install(tmp_path, "other-package", mine="their_loggers:build")
    with pytest.raises(ConfigError, match="brought by 2 packages") as caught:
        make_logger("mine")
    assert "their_loggers:Mine of their-package" in str(caught.value)
    assert "import path" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_package:Mine", "'mine': importing no_such_package failed"),
        ("their_loggers:number", "'mine' gives a int that lacks"),
        ("their_loggers", "'mine' is no import path"),
    ],
)
def test_an_entry_point_that_leads_to_no_logger_is_refused(tmp_path: Path, value: str, words: str) -> None:
    install(tmp_path, "their-package", mine=value)
    with pytest.raises(ConfigError, match=words):
        make_logger("mine")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "tensorbord",
            ["'tensorbord'", "comet, jsonl, mlflow, progress, tensorboard, text, wandb", "did you mean tensorboard?"],
        ),
        ("", ["''", "comet, jsonl, mlflow, progress, tensorboard, text, wandb"]),
        ("no_such_package:Mine", ["no_such_package", "PYTHONPATH"]),
        ("broken_loggers:Mine", ["broken_loggers", "a_package_that_is_not_there"]),
        ("raising_loggers:Mine", ["ValueError: no token"]),
        ("their_loggers:Mino", ["has no Mino", "did you mean Mine?"]),
        ("their_loggers:", ["import path", "my_pkg.my_module:MyLogger"]),
        (":Mine", ["import path"]),
        (".their_loggers:Mine", ["importing .their_loggers failed"]),
        ("their_loggers:NeedsUrl", ["cannot be built", "url", "function"]),
        ("their_loggers:Half", ["Half", "log_metrics, log_params, log_text, close", "BaseLogger"]),
        ("their_loggers:Nameless", ["Nameless", "lacks name"]),
        ("their_loggers:number", ["int", "lacks"]),
    ],
)
def test_what_gives_no_logger_is_refused_with_the_reason(spec: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_logger(spec)
    message = str(caught.value)
    assert [word for word in words if word not in message] == []
    assert caught.value.hint
