from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.loggers.base import RunInfo
from harness.naming.template import Template


@pytest.fixture
def run_info(tmp_path: Path) -> Callable[..., RunInfo]:
    """Makes the facts of a run called foo under tmp_path/runs, with its directory there."""

    def make(**changes: Any) -> RunInfo:
        root = tmp_path / "runs"
        directory = root / "foo"
        directory.mkdir(parents=True, exist_ok=True)
        facts: dict[str, Any] = {
            "run_name": "foo",
            "root": root,
            "directory": directory,
            "rank": 0,
            "world_size": 1,
            "attempt": 1,
            "started": "2026-01-02T03:04:05.678Z",
            "resumed_step": None,
            "max_duration": "2ep",
            "path": lambda relative: root / relative,
        }
        facts.update(changes)
        values = {"run_name": "foo", "rank": facts["rank"]}

        def format_template(template: Template) -> str:
            return template.format({field: values[field] for field in template.fields})

        return RunInfo(format=format_template, **facts)

    return make
