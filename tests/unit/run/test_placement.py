from __future__ import annotations

import pytest

from harness.errors import TemplateError
from harness.naming.template import Template
from harness.run.placement import check_placement


def check(text: str, *, is_log: bool = False) -> Template:
    return check_placement(Template.compile(text, option="here"), option="here", is_log=is_log)


@pytest.mark.parametrize("text", ["{run_name}", "{run_name}/traces/{batch}.pt", "{run_name}/deep/run.json"])
def test_what_lies_in_the_run_is_fine(text: str) -> None:
    assert check(text).text == text


@pytest.mark.parametrize("text", ["x", "foo/x", "x{run_name}/y", "{run_name}-x/y", "{rank}/{run_name}"])
def test_what_may_lie_outside_of_the_run_is_refused(text: str) -> None:
    with pytest.raises(TemplateError, match="does not lie in the directory of the run"):
        check(text)


@pytest.mark.parametrize("name", ["run.json", "recipe.toml", "run.json/x", "steps-rank{rank}.jsonl"])
def test_a_file_of_the_harness_is_refused_for_logs_too(name: str) -> None:
    for is_log in (False, True):
        with pytest.raises(TemplateError, match="harness's own"):
            check(f"{{run_name}}/{name}", is_log=is_log)


@pytest.mark.parametrize("name", ["metrics-rank{rank}.jsonl", "system-rank{rank}.jsonl", "logs-rank{rank}.txt"])
def test_the_name_of_a_log_is_for_logs_only(name: str) -> None:
    check(f"{{run_name}}/{name}", is_log=True)
    with pytest.raises(TemplateError, match="name of a log"):
        check(f"{{run_name}}/{name}")
