"""The shim, the process that trials are forked from, and a run that nothing happened to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from evidence import Evidence, look
from faults import NoCompilerError, compile_shim
from nursery import Nursery


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return compile_shim(tmp_path_factory.mktemp("shim"))
    except NoCompilerError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def nursery(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery"), shim) as started:
        yield started


@pytest.fixture(scope="module")
def train_whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Evidence]:
    """Trains without a fault and tells what that left; once for each duration."""
    known: dict[str, Evidence] = {}

    def train(max_duration: str) -> Evidence:
        if max_duration not in known:
            root = tmp_path_factory.mktemp("whole")
            ended = nursery.run("train", root, max_duration=max_duration)
            assert ended.code == 0, ended.stderr
            known[max_duration] = look(root)
            assert known[max_duration].status == "finished"
        return known[max_duration]

    return train
