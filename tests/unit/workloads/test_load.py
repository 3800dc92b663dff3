from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from harness.errors import MissingExtraError, WorkloadError
from harness.workloads import BUNDLED, load_workload

GOOD = """
    from pathlib import Path
    from torch import nn
    from torch.optim import SGD
    from harness.workloads import Workload

    def build(width: int = 2, name: str = "", **rest):
        return Workload(
            model=nn.Linear(width, 1),
            train_dataloader=[rest],
            optimizer=lambda model: SGD(model.parameters(), lr=0.1),
            loss_fn=lambda outputs, batch: outputs.mean(),
            name=name,
        )
"""
numbers = itertools.count()


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module into the current directory, which is not on the path, and gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)

    def write(text: str) -> str:
        name = f"user_training_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("user_training_"):
            del sys.modules[name]


def test_import_path_finds_modules_of_the_current_directory(write_module: Callable[[str], str]) -> None:
    spec = f"{write_module(GOOD)}:build"
    workload = load_workload(spec, {"width": "5", "colour": "red"})
    assert workload.model.in_features == 5
    assert workload.train_dataloader == [{"colour": "red"}]
    assert workload.name == spec


def test_name_that_the_workload_gives_itself_is_kept(write_module: Callable[[str], str]) -> None:
    assert load_workload(f"{write_module(GOOD)}:build", {"name": "mine"}).name == "mine"


def test_import_path_may_name_something_inside_a_class(write_module: Callable[[str], str]) -> None:
    name = write_module(GOOD + "\n\n    class Jobs:\n        small = staticmethod(build)\n")
    assert load_workload(f"{name}:Jobs.small", {"width": "3"}).model.in_features == 3


@pytest.mark.parametrize("spec", ["digit", "chralm"])
def test_misspelt_name_is_refused_with_the_nearest_and_all_known(spec: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        load_workload(spec)
    assert caught.value.message == f"there is no workload {spec!r}"
    assert "did you mean" in str(caught.value)
    assert all(name in str(caught.value) for name in BUNDLED)


@pytest.mark.parametrize(
    "spec", ["", ":", "a:", ":build", "a b:build", "a..b:build", "a:b:c", "../x:build", "train.py:build"]
)
def test_text_that_is_no_import_path_is_refused_with_an_example(spec: str) -> None:
    with pytest.raises(WorkloadError, match=r"my_pkg\.train:build"):
        load_workload(spec)


def test_module_that_is_not_there_is_refused_with_the_import_error_as_cause() -> None:
    with pytest.raises(
        WorkloadError, match=r"importing 'no_such_pkg\.train' failed with ModuleNotFoundError"
    ) as caught:
        load_workload("no_such_pkg.train:build")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("import no_such_neighbour", ModuleNotFoundError),
        ("1 / 0", ZeroDivisionError),
        ("def build(:", SyntaxError),
    ],
)
def test_module_that_fails_to_import_keeps_its_own_error(
    write_module: Callable[[str], str], text: str, kind: type[Exception]
) -> None:
    name = write_module(text)
    with pytest.raises(WorkloadError, match=f"importing '{name}' failed with {kind.__name__}") as caught:
        load_workload(f"{name}:build")
    assert type(caught.value.__cause__) is kind


def test_script_that_ends_itself_on_import_does_not_end_the_command(
    write_module: Callable[[str], str],
) -> None:
    name = write_module("import sys\nsys.exit(0)")
    with pytest.raises(WorkloadError, match="SystemExit: 0"):
        load_workload(f"{name}:build")


def test_attribute_that_is_not_there_is_refused_with_the_nearest(write_module: Callable[[str], str]) -> None:
    name = write_module(GOOD)
    with pytest.raises(WorkloadError, match=f"(?s)'{name}' has no 'biuld'.*did you mean 'build'"):
        load_workload(f"{name}:biuld")


def test_attribute_that_cannot_be_called_is_refused(write_module: Callable[[str], str]) -> None:
    name = write_module("build = 3")
    with pytest.raises(WorkloadError, match="'build' is a int, expected a function"):
        load_workload(f"{name}:build")


def test_build_that_returns_something_else_is_refused(write_module: Callable[[str], str]) -> None:
    name = write_module("def build():\n    return {'model': None}")
    with pytest.raises(WorkloadError, match=r"build\(\) returned a dict, expected a Workload"):
        load_workload(f"{name}:build")


def test_error_inside_build_keeps_its_own_traceback(write_module: Callable[[str], str]) -> None:
    name = write_module("def build(n: int = 1):\n    return deeper(n)\n\ndef deeper(n):\n    return [][n]")
    with pytest.raises(WorkloadError, match=r"build\(\) raised IndexError: list index out of range") as caught:
        load_workload(f"{name}:build", {"n": "2"})
    assert caught.value.__cause__ is not None
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__cause__.__traceback__)]
    assert frames[-2:] == ["build", "deeper"]


def test_build_that_ends_the_process_does_not_end_the_command(write_module: Callable[[str], str]) -> None:
    name = write_module("import argparse\ndef build():\n    argparse.ArgumentParser().error('unknown argument')")
    with pytest.raises(WorkloadError, match=r"build\(\) raised SystemExit: 2"):
        load_workload(f"{name}:build")


def test_unknown_option_is_found_before_build_is_called(write_module: Callable[[str], str]) -> None:
    name = write_module("def build(depth: int = 1):\n    raise AssertionError('built')")
    with pytest.raises(WorkloadError, match="has no option 'dept'"):
        load_workload(f"{name}:build", {"dept": "1"})


def test_errors_of_ours_raised_by_build_are_passed_on(write_module: Callable[[str], str]) -> None:
    name = write_module(
        "from harness.errors import MissingExtraError\ndef build():\n    raise MissingExtraError('needs x')"
    )
    with pytest.raises(MissingExtraError, match="needs x"):
        load_workload(f"{name}:build")


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_bundled_workload_repeats_with_the_seed_set_before_it_is_built(name: str) -> None:
    def losses() -> list[float]:
        torch.manual_seed(7)
        workload = load_workload(name, {"batch_size": "4"})
        found = []
        for batch in itertools.islice(iter(workload.train_dataloader), 2):
            inputs = batch["tokens"] if isinstance(batch, dict) else batch[0]
            found.append(workload.model.loss(workload.model(inputs), batch).item())
        return found

    assert losses() == losses()


def test_workloads_are_listed_and_checked_without_loading_torch() -> None:
    code = (
        "import sys, harness.models, harness.workloads as w\n"
        "w.BUNDLED, w.Workload, w.load_workload\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
