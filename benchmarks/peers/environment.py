"""The frameworks' own environment: made with pip from the pins beside this file, and what is in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from harness.errors import BenchError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENV = ROOT / "build" / "peers-venv"
_PINS = (HERE / "requirements.txt", HERE / "constraints.txt")
_UNWANTED = ("torchvision", "torchaudio")
_LIST = """
import json, platform
from importlib.metadata import distributions
found = {each.metadata["Name"]: each.version for each in distributions()}
print(json.dumps({"python": platform.python_version(), "versions": found}))
"""


def make(venv: Path = VENV) -> Path:
    """Make the environment where it is not there yet or the pins have changed since.

    Returns:
        Its interpreter.

    Raises:
        BenchError: Something could not be installed, or another torch came along.
    """
    python, stamp = venv / "bin" / "python", venv / ".installed"
    pins = "".join(path.read_text() for path in _PINS)
    if stamp.is_file() and stamp.read_text() == pins and shutil.which(python):
        return python
    print(f"making {venv.relative_to(ROOT)}, which takes some minutes", file=sys.stderr)
    _run([sys.executable, "-m", "venv", "--clear", str(venv)])
    # pip, and never a quicker installer: those prefer the torch that carries gigabytes for GPUs.
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--requirement", str(_PINS[0]), "--constraint", str(_PINS[1])])
    _check(python)
    stamp.write_text(pins)
    return python


def contents(python: Path) -> tuple[str, dict[str, str]]:
    """The version of an interpreter, and those of all packages it finds.

    Raises:
        BenchError: It is no Python interpreter.
    """
    said = _run([str(python), "-c", _LIST])
    try:
        found = json.loads(said)
        return found["python"], dict(sorted(found["versions"].items(), key=lambda item: item[0].lower()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(
            f"{python.name} does not do what a Python interpreter does", hint="give one with --python, or leave it out"
        ) from error


def _check(python: Path) -> None:
    _, versions = contents(python)
    wanted = next(line.partition("==")[2] for line in _PINS[0].read_text().splitlines() if line.startswith("torch=="))
    if versions.get("torch", "").partition("+")[0] != wanted:
        raise BenchError(f"{_PINS[0].name} asks for torch {wanted}, and torch {versions.get('torch')} came with it")
    came = [name for name in _UNWANTED if name in versions]
    if came:
        raise BenchError(
            f"{', '.join(came)} came along with the packages of {_PINS[0].name}",
            hint="pin a version of the framework that does not need it",
        )


def _run(command: list[str]) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchError(f"{command[0]} cannot be started: {error.strerror}") from error
    if ended.returncode != 0:
        last = "\n".join(ended.stderr.strip().splitlines()[-8:])
        raise BenchError(
            f"{' '.join(command[1:5])} … ended with exit code {ended.returncode}", hint=f"it said:\n{last}"
        )
    return ended.stdout
