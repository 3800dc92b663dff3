"""Options of the suite, and what a saved file must say about where it was measured."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("harness benchmarks")
    group.addoption(
        "--processes", type=int, default=7, metavar="N", help="fresh processes per step benchmark [default: 7]"
    )
    group.addoption(
        "--steps", type=int, default=4000, metavar="N", help="steps counted in each of them [default: 4000]"
    )
    group.addoption(
        "--million-steps", action="store_true", help="also log for a million steps, which takes ten minutes"
    )


@pytest.fixture
def processes(request: pytest.FixtureRequest) -> int:
    """Fresh processes in which a benchmark is run: the unit of its statistics."""
    return int(request.config.getoption("--processes"))


@pytest.fixture
def steps(request: pytest.FixtureRequest) -> int:
    """Steps that each process counts."""
    return int(request.config.getoption("--steps"))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:  # noqa: ARG001
    """Whether two files can be compared depends on these."""
    machine_info["torch"] = metadata.version("torch")  # torch itself takes a second to load
    machine_info["python"] = platform.python_version()
    machine_info["num_cpus"] = os.cpu_count()
