from __future__ import annotations

import click
import pytest

from harness.cli.options import parse_assignments

CONTEXT = click.Context(click.Command("train"))
PARAMETER = click.Option(["-o"])


def test_assignments_are_cut_at_the_first_equals_sign() -> None:
    given = ("lr=0.1", "url=a=b", "empty=", "spaces= x ")
    assert parse_assignments(CONTEXT, PARAMETER, given) == {"lr": "0.1", "url": "a=b", "empty": "", "spaces": " x "}


@pytest.mark.parametrize("values", [("lr",), ("=1",), ("",), ("lr=1", "lr=2")])
def test_what_is_no_assignment_or_one_given_twice_is_refused(values: tuple[str, ...]) -> None:
    with pytest.raises(click.BadParameter, match=r"key=value|twice"):
        parse_assignments(CONTEXT, PARAMETER, values)
