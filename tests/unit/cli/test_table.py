from __future__ import annotations

from harness.cli.table import Column, render_pairs, render_table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    columns = (Column(title="name"), Column(title="steps", right=True))
    assert list(render_table(columns, [("a", "7"), ("longer", "123456")])) == [
        "name     steps",
        "a            7",
        "longer  123456",
    ]


def test_a_table_without_rows_is_its_titles() -> None:
    assert list(render_table((Column(title="name"), Column(title="status")), [])) == ["name  status"]


def test_cells_cannot_steer_the_terminal_or_forge_a_row() -> None:
    lines = list(render_table((Column(title="path"),), [("a\x1b[2J\nforged\u202e",)]))
    assert lines == ["path", "a\\x1b[2J\\nforged\\u202e"]


def test_values_of_several_lines_go_on_below_themselves() -> None:
    assert list(render_pairs([("traces", ["one", "two"]), ("status", "fine\x07")])) == [
        "traces  one",
        "        two",
        "status  fine\\x07",
    ]
