from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.errors import TemplateError
from harness.loggers.base import BaseLogger
from harness.loggers.jsonl import JsonlLogger
from harness.loggers.tensorboard import TensorBoardLogger
from harness.loggers.text import TextLogger


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda template: JsonlLogger(metrics=template), "jsonl metrics="),
        (lambda template: JsonlLogger(system=template), "jsonl system="),
        (TextLogger, "text path="),
        (TensorBoardLogger, "tensorboard folder="),
    ],
)
@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("logs/{run_name}.txt", "does not lie in the directory of the run"),
        ("{run_name}-x/logs.txt", "does not lie in the directory of the run"),
        ("{run_name}/{batch}.txt", "field '{batch}' has no value here"),
        ("{run_name}/run.json", "is a file of the harness's own"),
        ("{run_name}/steps-rank{rank}.jsonl", "is a file of the harness's own"),
    ],
)
def test_a_place_that_is_not_the_loggers_is_refused_at_construction(
    make: Callable[[str], BaseLogger], option: str, template: str, fault: str
) -> None:
    with pytest.raises(TemplateError, match=fault) as caught:
        make(template)
    assert str(caught.value).startswith(option)
