"""The Makefile hands on what the user typed, and makes `.venv` completely or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Stands in for .venv/bin/python: prints its arguments, one a line.
PRINTS = '#!/bin/sh\nfor word in "$@"; do printf "<%s>\\n" "$word"; done\n'
# Stands in for the system's python: each question is answered by a file of that name.
SYSTEM_PYTHON = """#!/bin/sh
here=$(dirname "$0")
echo "$@" >> "$here/calls"
case "$*" in
    *version_info*) test ! -e "$here/too_old" ;;
    *ensurepip*) test ! -e "$here/no_ensurepip" ;;
    -V) echo "Python 3.9.1" ;;
    *"-m venv"*) mkdir -p .venv/bin && cp "$here/venv_python" .venv/bin/python ;;
esac
"""
VENV_PYTHON = """#!/bin/sh
case "$*" in
    *install*) echo installed >> installs; test ! -e pip_fails ;;
esac
"""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A folder with the Makefile, and stand-ins for what it calls."""

    path: Path

    def make(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        names = ("RUN", "PROFILE", "WORKLOAD", "MAX_DURATION", "ROOT", "PORT", "ARGS", "RESUME", "OVERWRITE")
        clean = {name: value for name, value in os.environ.items() if name not in (*names, "MAKEFLAGS", "MAKELEVEL")}
        return subprocess.run(
            ["make", "--no-print-directory", *words],
            cwd=self.path,
            env={**clean, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def words(self, *words: str, **environment: str) -> list[str]:
        """What the harness was called with."""
        result = self.make(*words, **environment)
        assert result.returncode == 0, result.stderr
        text = result.stdout.removeprefix("<-m>\n<harness>\n").removesuffix(">\n").removeprefix("<")
        return text.split(">\n<")

    def script(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path


@pytest.fixture
def empty(tmp_path: Path) -> Checkout:
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")
    shutil.copy(MAKEFILE, tmp_path / "Makefile")
    checkout = Checkout(tmp_path)
    checkout.script("system/python", SYSTEM_PYTHON)
    checkout.script("system/venv_python", VENV_PYTHON)
    return checkout


@pytest.fixture
def ready(empty: Checkout) -> Checkout:
    empty.script(".venv/bin/python", PRINTS)
    (empty.path / ".venv" / ".installed").write_text("")
    return empty


def test_without_settings_there_is_no_name_and_no_option(ready: Checkout) -> None:
    assert ready.words("profile") == ["profile"]
    assert ready.words("train") == ["train"]


def test_settings_become_options(ready: Checkout) -> None:
    given = ("RUN=foo", "PROFILE=quick", "WORKLOAD=digits", "MAX_DURATION=2ep", "ROOT=my runs", "RESUME=1")
    assert ready.words("profile", *given, "ARGS=-o lr=0.1 -o 'name=a b'") == [
        "profile",
        "--profile=quick",
        "--workload=digits",
        "--max-duration=2ep",
        "--root=my runs",
        "--resume",
        "-o",
        "lr=0.1",
        "-o",
        "name=a b",
        "--",
        "foo",
    ]
    assert ready.words("train", "RUN=foo", "OVERWRITE=1", "RESUME=0") == ["train", "--overwrite", "--", "foo"]
    assert ready.words("tensorboard", "ROOT=r", "PORT=7000") == ["tensorboard", "--root=r", "--port=7000"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "-x",
        "../x",
        "a'b",
        'a"b',
        "$HOME",
        "$$",
        "$(shell touch made)",
        "`touch made`",
        "$(touch made)",
        "a;touch made",
        "a\\b",
        "a#b",
        "*",
        "ümlaut",
        "a%b",
    ],
)
def test_a_name_arrives_as_it_was_typed(ready: Checkout, name: str) -> None:
    assert ready.words("profile", f"RUN={name}") == ["profile", "--", name]
    assert ready.words("profile", RUN=name) == ["profile", "--", name]  # RUN=… make profile
    assert not (ready.path / "made").exists()


def test_an_empty_setting_is_handed_on_for_the_command_to_refuse(ready: Checkout) -> None:
    assert ready.words("profile", "PROFILE=", "ROOT=") == ["profile", "--profile=", "--root="]


def test_help_is_the_default_and_names_every_target(ready: Checkout) -> None:
    result = ready.make()
    assert result.returncode == 0
    targets = MAKEFILE.read_text().split(".PHONY:")[1].split("\n")[0].split()
    assert all(f"  {target} " in result.stdout for target in targets)
    assert "make profile RUN=foo" in result.stdout


def install(checkout: Checkout) -> subprocess.CompletedProcess[str]:
    return checkout.make("install", f"PYTHON={checkout.path}/system/python")


def calls(checkout: Checkout, text: str) -> int:
    return (checkout.path / "system" / "calls").read_text().count(text)


def test_the_environment_is_made_once(empty: Checkout) -> None:
    for _ in range(2):
        assert install(empty).returncode == 0
    assert (calls(empty, "-m venv"), (empty.path / "installs").read_text()) == (1, "installed\n")


def test_a_half_made_environment_is_made_again_from_nothing(empty: Checkout) -> None:
    (empty.path / "pip_fails").write_text("")
    assert install(empty).returncode != 0
    assert not (empty.path / ".venv" / ".installed").exists()
    (empty.path / "pip_fails").unlink()
    assert install(empty).returncode == 0
    assert calls(empty, "-m venv --clear") == 2


def test_changed_requirements_are_installed_into_the_environment_there_is(empty: Checkout) -> None:
    assert install(empty).returncode == 0
    stamp = empty.path / ".venv" / ".installed"
    os.utime(stamp, (1, 1))
    (empty.path / "pip_fails").write_text("")
    assert install(empty).returncode != 0
    assert calls(empty, "-m venv") == 1
    assert not stamp.exists()  # not taken as done, although it was done once


@pytest.mark.parametrize(
    ("fault", "text"),
    [("too_old", "is Python 3.9.1, and 3.11 or later is needed"), ("no_ensurepip", "apt install python3-venv")],
)
def test_a_python_that_cannot_do_it_is_told_with_the_remedy(empty: Checkout, fault: str, text: str) -> None:
    (empty.path / "system" / fault).write_text("")
    result = install(empty)
    assert result.returncode != 0
    assert text in result.stderr
    assert not (empty.path / ".venv").exists()


def test_a_missing_python_is_told(empty: Checkout) -> None:
    result = empty.make("install", "PYTHON=python-that-is-not-there")
    assert result.returncode != 0
    assert "there is no python-that-is-not-there" in result.stderr
