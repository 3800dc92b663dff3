"""The house keeps its order: who may import whom, and what must never load torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "harness"

LAYERS = (
    {"errors"},
    {"units"},
    {"naming"},
    {"run"},
    {"timeline"},
    {"capture", "loggers", "checkpoint", "distributed"},
    {"loop"},
    {"trainer"},
    {"bench"},
    {"cli", "__main__"},
)
"""From the bottom up: a module may import from its own package and from the layers below."""

BESIDE = {
    "intervals": set[str](),
    "trace": {"errors", "units"},
    "report": {"errors", "units", "intervals", "trace"},
    "models": {"errors", "units"},
    "workloads": {"errors", "units", "models"},
}
"""Packages that stand beside the layers, and all that each may import."""

MAY_ALSO_IMPORT = {
    "capture": {"trace"},
    "loop": {"trace", "report"},
    "bench": {"intervals", "models", "trace", "workloads"},
    "cli": {"intervals", "trace", "report", "models", "workloads"},
}
"""What the layers may import of the packages beside them."""

READERS = ("trace", "report")
READERS_NEED = {"harness", "numpy", "msgspec"}
PURE = "naming"
PURE_NEEDS = {"harness", "coolname"}
DISK = {"os", "pathlib", "shutil", "tempfile", "io"}


@dataclass(frozen=True, slots=True)
class Import:
    """One import of one module."""

    module: str
    """The module that imports."""
    target: str
    """The module that is imported, or a name in it."""
    line: int
    """Where."""
    for_types: bool
    """Whether only type checkers see it."""


def imports_of(path: Path) -> Iterator[Import]:
    """All imports of a file, those inside functions too."""
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(module, target, node.lineno, id(node) in for_types)


FILES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = [found for path in FILES for found in imports_of(path)]
MODULES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in FILES}


def part_of(module: str) -> str:
    """The package below `harness` that a module belongs to; "" for the root itself."""
    names = module.split(".")
    return names[1] if len(names) > 1 else ""


def allowed() -> dict[str, set[str]]:
    """For each package what it may import, itself included."""
    rules = {name: {name, *known} for name, known in BESIDE.items()}
    below: set[str] = set()
    for layer in LAYERS:
        rules.update({name: {name, *below, *MAY_ALSO_IMPORT.get(name, ())} for name in layer})
        below |= layer
    rules["__main__"] = {"cli"}
    return rules


def wrong_imports(imports: list[Import], rules: Mapping[str, set[str]]) -> list[str]:
    """The imports that break the order, as lines for people."""
    return [
        f"{found.module}:{found.line} imports {found.target}"
        for found in imports
        # The root has only lazy names; its version is all that is taken from it.
        if found.target.startswith("harness.")
        and found.module != "harness"
        and found.target != "harness.__version__"
        and part_of(found.target) not in rules[part_of(found.module)]
    ]


def import_graph(imports: list[Import]) -> dict[str, set[str]]:
    """Module to the modules that are imported with it; a name in a module stands for the module."""
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in imports:
        target = found.target if found.target in MODULES else found.target.rpartition(".")[0]
        if not found.for_types and target in MODULES and target != found.module:
            graph[found.module].add(target)
    return graph


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """A ring of modules that import each other, or nothing."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for target in sorted(graph[module]):
                cycle = visit(target, [*path, module])
                if cycle:
                    return cycle
            done.add(module)
        return []

    return next((cycle for module in sorted(graph) if (cycle := visit(module, []))), [])


def test_every_package_has_its_place_in_the_order() -> None:
    assert {part_of(module) for module in MODULES} - {""} <= set(allowed())


def test_imports_point_down_the_layers_only() -> None:
    assert wrong_imports(IMPORTS, allowed()) == []


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("harness.naming.template", "harness.run.directory.RunDirectory"),
        ("harness.capture.window", "harness.loggers.base.Logger"),
        ("harness.trace.reader", "harness.loop.session"),
        ("harness.loop.session", "harness.trainer.trainer.Trainer"),
        ("harness.run.claim", "harness.trace"),
    ],
)
def test_an_import_up_or_across_the_layers_is_found(module: str, target: str) -> None:
    assert wrong_imports([Import(module, target, 7, False)], allowed()) == [f"{module}:7 imports {target}"]


def test_no_module_imports_itself_round_a_corner() -> None:
    graph = import_graph(IMPORTS)
    # The check is worthless if the graph is: the session is known to need the recorder.
    assert "harness.timeline.recorder" in graph["harness.loop.session"]
    assert find_cycle(graph) == []


def test_a_cycle_is_found() -> None:
    graph = {"a": {"b", "d"}, "b": {"c"}, "c": {"b"}, "d": set()}
    assert find_cycle(graph) == ["b", "c", "b"]
    assert find_cycle({**graph, "c": {"d"}}) == []


@pytest.mark.parametrize(("packages", "needs"), [(READERS, READERS_NEED), ((PURE,), PURE_NEEDS)], ids=["read", "pure"])
def test_readers_and_naming_need_next_to_nothing(packages: tuple[str, ...], needs: set[str]) -> None:
    found = {
        item.target.split(".")[0]: f"{item.module}:{item.line}" for item in IMPORTS if part_of(item.module) in packages
    }
    assert {name: place for name, place in found.items() if name not in needs | set(sys.stdlib_module_names)} == {}


def test_naming_has_no_means_to_touch_the_disk() -> None:
    used = {found.target.split(".")[0] for found in IMPORTS if part_of(found.module) == PURE}
    assert used & DISK == set()


def test_only_the_command_line_parses_options() -> None:
    users = {found.module for found in IMPORTS if found.target.split(".")[0] in ("click", "argparse", "getopt")}
    assert {part_of(module) for module in users} == {"cli"}


HELP = (
    "import runpy, sys; sys.argv = ['harness', '--help']\ntry: runpy.run_module('harness', run_name='__main__')\n"
    "except SystemExit as end: assert not end.code, end.code"
)


@pytest.mark.parametrize(
    "code",
    [
        "import harness",
        "import harness; harness.HarnessError; harness.Recipe; harness.Duration; harness.load_trace",
        "import harness.trace",
        "import harness.report.summary",
        "import harness.naming, harness.run.directory, harness.run.manifest_file",
        "import harness.loggers; [harness.loggers.make_logger(name) for name in ('jsonl', 'text', 'tensorboard')]",
        "import harness.capture.finish",
        "import harness.workloads, harness.models, harness.checkpoint",
        "import harness.checkpoint.inventory, harness.checkpoint.verify, harness.checkpoint.prune",
        HELP,
    ],
    ids=["root", "light", "trace", "report", "run", "loggers", "finish", "lazy", "checkpoints", "help"],
)
def test_torch_is_not_loaded_by(code: str) -> None:
    program = f"import sys\n{code}\nprint('loaded' if 'torch' in sys.modules else 'free of torch')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "free of torch"


def test_importing_the_root_loads_next_to_nothing() -> None:
    program = (
        "import sys; before = set(sys.modules); import harness\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) - set(sys.stdlib_module_names) == {"harness"}
