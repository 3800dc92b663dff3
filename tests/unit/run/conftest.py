"""A full disk for the tests of this folder: the limit on file sizes, which needs no mount."""

from __future__ import annotations

import resource
from collections.abc import Callable, Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Put the limit back as soon as a test's body ends, however it does.

    A fixture's end is too late: before it pytest writes its progress, and where that goes to a file it would meet the
    limit itself.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        return (yield)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def file_size_limit() -> Callable[[int | None], None]:
    """A disk that is full for as long as it is told: writes past the limit are cut short, then refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    return limit
