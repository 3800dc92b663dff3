"""Run names and templates that want to lead out of the root: whatever they are, what is written lies in the run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import session
from harness.errors import ConfigError, HarnessError

WAYS_OUT = (
    "..",
    ".",
    "~",
    "$HOME",
    "%2e%2e",
    "C:",
    "con",
    "-rf",
    "",
    " ",
    "..;",
    "\uff0e\uff0e",
    "…",
    "foo",
    "link",
    "victim",
)
FIELDS = ("{run_name}", "{rank}", "{batch}", "{epoch}", "{hostname}", "{attempt}", "{x}", "{run_name.__class__}", "{")
SIGNS = ("/", "\\", "//", "/./", "\0", "\n", "\u202e", "\ud800", "é", "-", ".", "a", "0" * 250)
TEXTS = st.lists(st.sampled_from((*WAYS_OUT, *FIELDS, *SIGNS)) | st.text(max_size=3), max_size=6).map("".join)
GOOD = st.lists(st.sampled_from(("a", "b1", "-", "_", ".")), max_size=4).map(lambda parts: "x" + "".join(parts) + "x")
MIXED = GOOD | st.tuples(GOOD, TEXTS, GOOD).map("".join)
INSIDE = st.sampled_from(["{run_name}/", "{run_name}/", "{run_name}/../", "../"])
TEMPLATES = {
    "save_folder": st.tuples(INSIDE, MIXED).map("".join),
    "save_filename": st.tuples(MIXED, st.sampled_from(["{batch}.pt", ".pt"])).map("".join),
    "save_latest_filename": MIXED,
    "trace_filename": st.tuples(INSIDE, MIXED, st.sampled_from(["{batch}.pt.trace.json.gz", ".gz"])).map("".join),
}
NUM_EXAMPLES = 100


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder with the root in it, and beside the root what must stay as it is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "victim").write_text("as it was")
        (folder / "outside").mkdir()
        root = folder / "root"
        root.mkdir()
        (root / "victim").write_text("as it was")
        (root / "link").symlink_to(folder / "outside")
        yield folder


def written_since(place: Path, seen: set[str]) -> list[Path]:
    """All names below `place`, not followed through links, that were not there."""
    found = []
    for folder, folders, files in os.walk(place):
        found += [Path(folder, name) for name in (*folders, *files) if os.path.join(folder, name) not in seen]  # noqa: PTH118
    return found


def names_below(place: Path) -> set[str]:
    return {str(path) for path in written_since(place, set())}


def check_inside(place: Path, run_name: str | None, act: Callable[[], str | None]) -> None:
    """Do something that may name a run; afterwards all that is new lies in that run."""
    seen = names_below(place)
    root = place / "root"
    owned = act()
    for path in written_since(place, seen):
        real = Path(os.path.realpath(path.parent)) / path.name
        assert owned is not None, f"{run_name!r} was refused, and {path} was written"
        assert real == root / owned or (root / owned) in real.parents, path
    assert (place / "victim").read_text() == (root / "victim").read_text() == "as it was"
    assert list((place / "outside").iterdir()) == []


class Counter:
    """The least that can be saved."""

    def state_dict(self) -> dict[str, int]:
        return {"count": 1}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


def run_session(root: Path, run_name: str, **options: Any) -> str | None:
    """A run of one step that saves; its name, or None where it was refused."""
    try:
        made = session(
            run_name,
            root=root,
            state={"counter": Counter()},
            save_interval="1ba",
            handle_signals=False,
            **options,
        )
    except HarnessError:
        return None
    with made as run:
        for _ in run.steps([1], "1ba"):
            run.log({"loss": 1.0})
    return made.run_name


def fuzz(place: Path, examples: st.SearchStrategy[Any], run: Callable[[Any], str | None]) -> list[Any]:
    """What was accepted, of examples that wrote nothing where they should not."""
    accepted = []

    @settings(max_examples=NUM_EXAMPLES, deadline=None, database=None, derandomize=True)
    @given(examples)
    def one(example: Any) -> None:
        owned: list[str | None] = []

        def act() -> str | None:
            owned.append(run(example))
            return owned[0]

        check_inside(place, repr(example), act)
        if owned[0] is not None:
            accepted.append(example)

    one()
    return accepted


def test_no_run_name_leads_out_of_the_root(place: Path) -> None:
    hostile = st.sampled_from(["../victim", "link", "victim", "..", "\ud800", "a" * 300, "a/b", "/tmp/x"])
    accepted = fuzz(place, hostile | TEXTS | MIXED, lambda name: run_session(place / "root", name, overwrite=True))
    assert len(accepted) > 10
    assert all(name.isascii() and "/" not in name for name in accepted)


def test_no_template_leads_out_of_the_run(place: Path) -> None:
    templates = st.sampled_from(sorted(TEMPLATES)).flatmap(
        lambda option: st.fixed_dictionaries({option: TEMPLATES[option]})
    )
    accepted = fuzz(place, templates, lambda options: run_session(place / "root", "foo", overwrite=True, **options))
    assert {option for options in accepted for option in options} == set(TEMPLATES)


def test_the_test_itself_sees_what_is_written_outside(place: Path) -> None:
    def escape() -> str:
        (place / "outside" / "new").touch()
        return "foo"

    try:
        with pytest.raises(AssertionError, match="new"):
            check_inside(place, "foo", escape)
    finally:
        (place / "outside" / "new").unlink()


def test_a_name_that_needs_no_fuzzing_works(place: Path) -> None:
    check_inside(place, "plain", lambda: run_session(place / "root", "plain"))
    assert (place / "root" / "plain" / "checkpoints" / "latest-rank0.pt").is_symlink()
    with pytest.raises(ConfigError):
        session("../plain", root=place / "root")
