"""The wheel is complete: installed in an environment of its own, it works from another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from harness import __version__
from harness.capture.recipe import known_recipes

ROOT = Path(__file__).parents[2]
PACKED = ("harness", "profiles", "pyproject.toml", "README.md", "LICENSE")
"""What the wheel is made of. Tests and benchmarks lie beside it, so that a wrong rule would pack them."""
TINY_CHARLM = ("-o", "n_layer=1", "-o", "d_model=16", "-o", "n_head=2", "-o", "context=16", "-o", "batch_size=4")
TIMEOUT_S = 180


def run(command: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program that finds nothing of this checkout by its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HARNESS_", "VIRTUAL"))}
    done = subprocess.run(
        command, cwd=cwd, env={**kept, **variables}, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy: a build must not leave its traces in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*PACKED, "tests", "benchmarks"):
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    run([*pip, "--wheel-dir", str(folder), str(source)], cwd=folder)
    found = list(folder.glob("*.whl"))
    assert [path.name for path in found] == [f"profiling_harness-{__version__}-py3-none-any.whl"]
    return found[0]


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment that has the wheel, and finds its dependencies in this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    packages = next(folder.glob("lib/python*/site-packages"))
    # Only the folder: a .pth file in it, as of an editable install, is not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin" / "python")]
    run([*pip, "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)], cwd=folder)
    return folder / "bin"


def test_the_wheel_holds_the_package_and_the_recipes_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "harness").rglob("*.py")}
    recipes = {f"harness/profiles/{name}.toml" for name in known_recipes()}
    info = {name for name in names if name.startswith(f"profiling_harness-{__version__}.dist-info/")}
    assert len(recipes) >= 5
    assert names - info == modules | recipes | {"harness/py.typed"}
    assert f"profiling_harness-{__version__}.dist-info/licenses/LICENSE" in info


def test_the_installed_package_is_the_wheels(programs: Path, tmp_path: Path) -> None:
    done = run([str(programs / "python"), "-c", "import harness; print(harness.__file__)"], cwd=tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(programs.parent)


def test_the_installed_command_knows_the_recipes(programs: Path, tmp_path: Path) -> None:
    done = run([str(programs / "harness"), "profiles", "--json"], cwd=tmp_path)
    assert [recipe["name"] for recipe in json.loads(done.stdout)] == list(known_recipes())


def test_the_installed_command_profiles_a_run_in_the_folder_it_is_called_from(programs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "short.toml"
    recipe.write_text("[schedule]\nwait = 3\nwarmup = 1\nactive = 2\nrepeat = 2\n")
    command = ["harness", "profile", "foo", "--workload", "charlm", "--max-duration", "12ba", *TINY_CHARLM]
    done = run([str(programs / command[0]), *command[1:], "--profile", str(recipe)], cwd=tmp_path, OMP_NUM_THREADS="1")
    directory = tmp_path / "runs" / "foo"
    manifest = json.loads((directory / "run.json").read_text())
    assert (manifest["status"], manifest["summary"]["step"]) == ("finished", 12)
    assert manifest["versions"]["harness"] == __version__
    steps = [json.loads(line)["step"] for line in (directory / "steps-rank0.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))
    # Made by a process of the installed package, started from the training process.
    traces = [path.name for path in sorted((directory / "traces").iterdir())]
    assert traces == ["rank0.000005.pt.trace.json.gz", "rank0.000011.pt.trace.json.gz"]
    assert (directory / "checkpoints" / "latest-rank0.pt").resolve().name == "ep0-ba12-rank0.pt"
    assert "foo (finished)" in done.stdout
