"""docs/templates.md says what the code does: its examples run, its tables are the code's."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import harness.naming.run_name
import harness.naming.template
from harness.errors import TemplateError
from harness.naming.fields import FIELDS, LOCAL_FIELDS, REMOTE_FIELDS
from harness.naming.template import Template

TEXT = Path(__file__).parents[3].joinpath("docs", "templates.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
FLAGS = doctest.ELLIPSIS | doctest.REPORT_NDIFF


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table after a line."""
    table = TEXT.split(heading, 1)[1].split("|---", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]


def test_every_code_block_gives_what_it_says() -> None:
    assert {language for language, _ in BLOCKS} == {"pycon"}, "a block in another language is not run"
    source = "\n".join(block for _, block in BLOCKS)
    test = doctest.DocTestParser().get_doctest(source, {}, "templates.md", "templates.md", 0)
    report: list[str] = []
    results = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    assert results.attempted >= 10
    assert results.failed == 0, "".join(report)


@pytest.mark.parametrize("module", [harness.naming.run_name, harness.naming.template], ids=["run_name", "template"])
def test_the_examples_in_docstrings_give_what_they_say(module: object) -> None:
    results = doctest.testmod(module, optionflags=FLAGS)  # type: ignore[arg-type]
    assert results.attempted > 0
    assert results.failed == 0


def test_the_table_of_fields_is_the_one_in_the_code() -> None:
    assert rows("## Fields") == [
        [f"`{name}`", field.kind.value, field.description, f"`{field.example}`"] for name, field in FIELDS.items()
    ]


@pytest.mark.parametrize("name", FIELDS)
def test_every_example_of_a_field_is_a_value_it_may_have(name: str) -> None:
    fields = LOCAL_FIELDS if name in LOCAL_FIELDS else REMOTE_FIELDS
    template = Template.compile(f"{{{name}}}", option="docs", fields=fields)
    assert template.parse(template.format({name: FIELDS[name].example})) == {name: FIELDS[name].example}


@pytest.mark.parametrize("default", [row[2].strip("`") for row in rows("relative to the run root")])
def test_every_default_is_a_valid_template(default: str) -> None:
    assert Template.compile(default, option="docs").fields


@pytest.mark.parametrize("text", [row[0].strip("`") for row in rows("All of these are refused")])
def test_every_template_said_to_be_refused_is(text: str) -> None:
    with pytest.raises(TemplateError):
        Template.compile(text, option="docs")
