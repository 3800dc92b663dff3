from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.run import provenance
from harness.run.provenance import git_state, host_facts, versions


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q")
    return folder


def test_git_gives_the_commit_and_whether_tracked_files_changed(checkout: Path) -> None:
    (checkout / "train.py").write_text("a")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "one")
    (checkout / "runs").mkdir()
    (checkout / "runs" / "log").write_text("untracked")
    clean = git_state(checkout / "runs")
    assert clean is not None
    assert clean.commit == git(checkout, "rev-parse", "HEAD")
    assert not clean.dirty
    (checkout / "train.py").write_text("b")
    changed = git_state(checkout)
    assert changed is not None
    assert changed.dirty


def test_a_checkout_without_a_commit_and_a_plain_folder_have_no_git_state(checkout: Path, tmp_path: Path) -> None:
    assert git_state(checkout) is None
    assert git_state(tmp_path) is None
    assert git_state(tmp_path / "gone") is None


def test_a_git_that_is_missing_or_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec /bin/sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setattr(provenance, "GIT_TIMEOUT_S", 0.2)
    began = time.monotonic()
    assert git_state(tmp_path) is None
    assert time.monotonic() - began < 5


def test_versions_import_neither_torch_nor_numpy() -> None:
    script = (
        "import sys; from harness.run.provenance import versions; found = versions(); "
        "print(found['torch'], found['numpy'], 'torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    torch_version, numpy_version, loaded = done.stdout.split()
    assert loaded == "False"
    assert numpy_version == versions()["numpy"]
    assert torch_version[0].isdigit()
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert provenance._version("surely-not-installed") is None


def test_host_facts_survive_a_removed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    assert host_facts().cwd == str(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    found = host_facts()
    assert found.cwd is None
    assert found.pid == os.getpid()
    assert found.argv[0] == sys.orig_argv[0]
    assert found.cpus >= 1
