"""The names people import: all of them listed, all of them there, and their examples true."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import harness

PACKAGE = Path(harness.__file__).parent
PACKAGES_WITH_NAMES = (
    "harness",
    "harness.checkpoint",
    "harness.loggers",
    "harness.models",
    "harness.naming",
    "harness.trace",
    "harness.workloads",
)


def has_examples(path: Path) -> bool:
    """Whether a docstring in the file has an example that can be run."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, nodes)]
    examples = [example for doc in docs for example in doctest.DocTestParser().get_examples(doc)]
    return any(doctest.SKIP not in example.options for example in examples)


MODULES_WITH_EXAMPLES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
    if has_examples(path)
]


@pytest.mark.parametrize("name", PACKAGES_WITH_NAMES)
def test_every_listed_name_is_there(name: str) -> None:
    module = importlib.import_module(name)
    assert sorted(module.__all__) == list(dict.fromkeys(sorted(module.__all__))), "a name is listed twice"
    for exported in module.__all__:
        assert getattr(module, exported) is not None


def our_names(module: ModuleType) -> set[str]:
    """Public classes, functions and the like of ours that can be reached in a module."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and getattr(value, "__module__", "").split(".")[0] == "harness"
    }


@pytest.mark.parametrize("name", PACKAGES_WITH_NAMES)
def test_every_name_that_can_be_reached_is_listed(name: str) -> None:
    module = importlib.import_module(name)
    for exported in module.__all__:
        getattr(module, exported)
    assert our_names(module) <= set(module.__all__)


def test_type_checkers_see_the_names_that_are_loaded_lazily() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    seen = {
        alias.asname or alias.name: (statement.module, alias.name)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert set(seen) == set(harness.__all__)
    for name, (module, attribute) in seen.items():
        assert module is not None
        assert getattr(importlib.import_module(module), attribute) is getattr(harness, name)


def test_names_are_there_before_anything_was_used() -> None:
    program = (
        "import harness\n"
        "missing = set(harness.__all__) - set(dir(harness))\n"
        "from harness import *\n"
        "print(sorted(missing), Trainer.__name__, session.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[] Trainer session\n"


@pytest.mark.parametrize("name", ["harness", "harness.models", "harness.workloads"])
def test_a_name_that_is_not_there_is_an_attribute_error(name: str) -> None:
    module = importlib.import_module(name)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'Trianer'"):
        module.Trianer  # noqa: B018 - asking is the test


@pytest.mark.parametrize("name", harness.__all__)
def test_every_public_name_says_what_it_is(name: str) -> None:
    doc = inspect.getdoc(getattr(harness, name))
    assert doc is not None
    assert doc.split("\n")[0].endswith((".", ":"))


def test_modules_with_examples_are_found() -> None:
    assert {"harness.units", "harness.trainer.trainer", "harness.loggers.base"} <= set(MODULES_WITH_EXAMPLES)


@pytest.mark.parametrize("name", MODULES_WITH_EXAMPLES)
def test_the_examples_in_docstrings_give_what_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_ROOT", str(tmp_path / "runs"))
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.attempted > 0
    assert results.failed == 0
