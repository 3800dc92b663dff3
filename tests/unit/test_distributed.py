from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from harness.distributed import RankFacts
from harness.errors import ConfigError

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "2",
    "WORLD_SIZE": "6",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
}


def test_one_process_is_rank_0_of_1() -> None:
    assert dataclasses.astuple(RankFacts.from_environ({"HOME": "/root"})) == (0, 0, 0, 1, 1)


def test_torchruns_variables_are_read() -> None:
    assert dataclasses.astuple(RankFacts.from_environ(TORCHRUN)) == (5, 1, 2, 6, 2)


def test_node_rank_may_have_its_other_name() -> None:
    environ = {name: value for name, value in TORCHRUN.items() if name != "GROUP_RANK"}
    assert RankFacts.from_environ({**environ, "NODE_RANK": "2"}).node_rank == 2


def test_one_machine_needs_no_node_rank() -> None:
    environ = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    assert RankFacts.from_environ(environ).node_rank == 0


def test_several_machines_without_a_node_rank_are_refused() -> None:
    environ = {name: value for name, value in TORCHRUN.items() if name != "GROUP_RANK"}
    with pytest.raises(ConfigError, match=r"several machines.*GROUP_RANK nor NODE_RANK"):
        RankFacts.from_environ(environ)


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"])
def test_a_missing_variable_is_named(missing: str) -> None:
    environ = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(ConfigError, match=f"but not {missing}\n"):
        RankFacts.from_environ(environ)


@pytest.mark.parametrize("value", ["", "one", "-1", "1.0", " 1", "²", "+1"])
def test_a_value_that_is_no_number_is_shown(value: str) -> None:
    with pytest.raises(ConfigError, match="LOCAL_RANK=") as error:
        RankFacts.from_environ({**TORCHRUN, "LOCAL_RANK": value})
    assert repr(value) in error.value.message


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"RANK": "6"}, ["RANK=6", "WORLD_SIZE=6"]),
        ({"WORLD_SIZE": "0"}, ["WORLD_SIZE=0"]),
        ({"LOCAL_RANK": "2"}, ["LOCAL_RANK=2", "LOCAL_WORLD_SIZE=2"]),
        ({"LOCAL_WORLD_SIZE": "7"}, ["LOCAL_WORLD_SIZE=7", "WORLD_SIZE=6"]),
        ({"LOCAL_WORLD_SIZE": "0"}, ["LOCAL_WORLD_SIZE=0"]),
        ({"RANK": "0"}, ["LOCAL_RANK=1", "RANK=0"]),
        ({"GROUP_RANK": "5"}, ["GROUP_RANK=5", "WORLD_SIZE=6"]),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(change: dict[str, str], names: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        RankFacts.from_environ({**TORCHRUN, **change})
    assert all(name in error.value.message for name in names)


def test_ranks_are_known_without_torch() -> None:
    code = "import sys, harness.distributed; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
