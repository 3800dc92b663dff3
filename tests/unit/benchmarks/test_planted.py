from __future__ import annotations

import ast

import pytest
from planted import PLANTS, Plant, plant, planted
from sides import ROOT, Side

TREE = Side(name="new", folder=ROOT, commit="0" * 40, dirty=False)


@pytest.mark.parametrize("edit", PLANTS, ids=lambda edit: edit.what)
def test_each_plant_fits_the_package_as_it_is_now(edit: Plant) -> None:
    text = (ROOT / "harness" / edit.file).read_text()
    changed = planted(edit, text)
    assert changed != text
    ast.parse(changed)


def test_a_plant_whose_line_is_gone_or_twice_there_is_refused() -> None:
    edit = Plant(what="x", file="x.py", before="b = 1", code="")
    for text in ("a = 1\n", "b = 1\nb = 1\n"):
        with pytest.raises(ValueError, match="expected one"):
            planted(edit, text)


def test_a_planted_copy_is_the_tree_but_for_the_edit(tmp_path) -> None:  # type: ignore[no-untyped-def]
    side = plant(PLANTS[0], TREE, tmp_path / "new", name="new")
    ours = {path.relative_to(ROOT) for path in (ROOT / "harness").rglob("*.py")}
    theirs = {path.relative_to(side.folder) for path in (side.folder / "harness").rglob("*.py")}
    assert ours == theirs
    changed = {str(path) for path in ours if (ROOT / path).read_bytes() != (side.folder / path).read_bytes()}
    assert changed == {"harness/loggers/jsonl.py"}
    assert side.dirty
    assert not (side.folder / "benchmarks" / "results").exists()
