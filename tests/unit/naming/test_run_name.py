from __future__ import annotations

import random
import re
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ConfigError, RunNameError
from harness.naming.fields import FIELDS, slug
from harness.naming.run_name import (
    MAX_LENGTH,
    NameGenerator,
    resolve_run_name,
    suggest_run_name,
    validate_run_name,
)

VALID = [
    "foo",
    "1657932618-infrared-ferret",
    "a",
    "_private",
    "lr0.1-bs32",
    "v1.2b",
    "x" * MAX_LENGTH,
    "CONSOLE",
    "com10",
]

REFUSED = {
    # name: (part of the reason, suggestion)
    "": ("empty", None),
    "foo/bar": ("'/'", "foo-bar"),
    "foo\\bar": ("'\\\\'", "foo-bar"),
    "../x": ("'/'", "x"),
    "a/../b": ("'/'", "a-b"),
    "/abs/path": ("'/'", "abs-path"),
    ".": ("stands for a folder", None),
    "..": ("stands for a folder", None),
    ".hidden": ("hides", "hidden"),
    "-rf": ("option", "rf"),
    "a\0b": ("U+0000", "a-b"),
    "a\n": ("U+000A", "a"),
    "a\x1b[31m": ("U+001B", "a-31m"),
    "abc\u202edef": ("U+202E", "abc-def"),
    "\u0441at": ("U+0441", "at"),  # CYRILLIC SMALL LETTER ES looks like c
    "half\ud83d": ("surrogate", "half"),
    "my run": ("U+0020", "my-run"),
    "résumé": ("U+00E9", "resume"),
    "foo🚀": ("U+1F680", "foo"),
    "🚀": ("U+1F680", None),
    "x" * 300: ("128 characters", "x" * 128),
    "x" * 127 + ".5": ("128 characters", "x" * 127),
    "x" * 126 + ".55": ("128 characters", "x" * 126 + "-5"),
    "foo.": ("ends with '.'", "foo"),
    "v1.2": ("torch-tb-profiler", "v1-2"),
    "con": ("Windows", "run-con"),
    "NUL.txt": ("Windows", "run-NUL.txt"),
    "lpt1": ("Windows", "run-lpt1"),
}


@pytest.mark.parametrize("name", VALID)
def test_a_valid_name_is_returned_unchanged_and_is_its_own_suggestion(name: str) -> None:
    assert validate_run_name(name) == name
    assert suggest_run_name(name) == name


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_name_is_refused_with_its_origin_the_reason_and_a_usable_suggestion(name: str) -> None:
    reason, suggestion = REFUSED[name]
    with pytest.raises(RunNameError) as caught:
        validate_run_name(name, source="RUN_NAME")
    assert caught.value.message.startswith("RUN_NAME=")
    assert reason in caught.value.message
    assert caught.value.hint is not None
    assert suggest_run_name(name) == suggestion
    if suggestion is not None:
        assert repr(suggestion) in caught.value.hint
        validate_run_name(suggestion)


def test_a_grouped_name_is_told_that_root_groups_runs() -> None:
    with pytest.raises(RunNameError, match="--root"):
        validate_run_name("team/exp")


@pytest.mark.parametrize("name", [5, None, b"foo", ["foo"]])
def test_a_name_that_is_no_text_is_refused_with_its_type(name: object) -> None:
    with pytest.raises(RunNameError, match=type(name).__name__):
        validate_run_name(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_is_printable_on_any_utf8_terminal_without_control_or_direction_characters(
    name: str,
) -> None:
    with pytest.raises(RunNameError) as caught:
        validate_run_name(name)
    text = str(caught.value)
    assert text.replace("\n", "").isprintable()
    text.encode("utf-8")
    assert len(text) < 500


@given(st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_a_suggestion_is_always_a_valid_name(name: str) -> None:
    suggestion = suggest_run_name(name)
    assert suggestion is None or validate_run_name(suggestion) == suggestion


@given(st.text(alphabet="aB1.-_/\\conul ", max_size=140))
@settings(max_examples=300, deadline=None)
def test_a_suggestion_is_valid_for_names_close_to_the_rules(name: str) -> None:
    suggestion = suggest_run_name(name)
    assert suggestion is None or validate_run_name(suggestion) == suggestion


@pytest.mark.parametrize("name", ["node1", "gpu-3.cluster.example", "10.0.0.5", "a" * 64])
def test_slug_keeps_a_safe_text(name: str) -> None:
    assert slug(name) == name


def test_slug_keeps_texts_apart_that_look_alike_once_changed() -> None:
    slugs = [
        slug(text) for text in ("node é", "node e", "node-e", "node/e", "", "🚀", "con", "con.x", "a" * 65, "a" * 66)
    ]
    assert len(set(slugs)) == len(slugs)


@given(st.text(max_size=100))
@settings(max_examples=300, deadline=None)
def test_a_slug_is_a_safe_file_name(text: str) -> None:
    found = slug(text)
    assert re.fullmatch(FIELDS["hostname"].pattern, found)
    assert 1 <= len(found) <= 64
    assert found.partition(".")[0].upper() not in ("CON", "NUL", "AUX", "PRN")


def test_an_explicit_name_wins_over_the_environment() -> None:
    resolved = resolve_run_name("foo", {"HARNESS_RUN_NAME": "bar"})
    assert (resolved.name, resolved.source) == ("foo", "run_name")


def test_the_environment_is_asked_in_order() -> None:
    environ = {"RUN_NAME": "c", "COMPOSER_RUN_NAME": "b", "HARNESS_RUN_NAME": "a"}
    for variable in ("HARNESS_RUN_NAME", "COMPOSER_RUN_NAME", "RUN_NAME"):
        resolved = resolve_run_name(None, environ)
        assert (resolved.name, resolved.source) == (environ.pop(variable), variable)
    resolved = resolve_run_name(None, environ)
    assert (resolved.name, resolved.source) == (None, "generated")


@pytest.mark.parametrize("variable", ["HARNESS_RUN_NAME", "COMPOSER_RUN_NAME", "RUN_NAME"])
@pytest.mark.parametrize("value", ["", "foo/bar"])
def test_a_variable_that_is_set_to_no_name_is_an_error_that_names_it(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^{variable}="):
        resolve_run_name(None, {variable: value})


def test_an_empty_explicit_name_is_an_error_and_does_not_fall_back() -> None:
    with pytest.raises(RunNameError, match=r"^run_name='' is empty"):
        resolve_run_name("", {"RUN_NAME": "foo"})


def test_a_generated_name_is_the_time_and_two_words_and_valid() -> None:
    generator = NameGenerator(unix_s=lambda: 1657932618)
    for _ in range(200):
        name = generator.generate()
        assert re.fullmatch(r"1657932618-[a-z]+-[a-z]+", name)
        assert validate_run_name(name) == name


def test_every_word_a_name_can_have_is_plain_and_short() -> None:
    import coolname
    from coolname.data import config

    words = [word for part in config.values() for word in part.get("words", ())]
    assert len(words) > 1000
    assert all(re.fullmatch("[a-z]{2,20}", word) for word in words)
    assert coolname.get_combinations_count(2) > 300_000


def test_the_clock_is_unix_seconds() -> None:
    before = int(time.time())
    assert before <= int(NameGenerator().generate().split("-")[0]) <= time.time()


def test_seeding_the_global_random_does_not_repeat_a_name() -> None:
    names = set()
    for _ in range(8):
        random.seed(42)
        names.add(NameGenerator(unix_s=lambda: 0).generate())
    assert len(names) > 1


def test_a_given_random_source_decides_the_names() -> None:
    first, second = (NameGenerator(unix_s=lambda: 0, random=random.Random(5)) for _ in range(2))
    assert [first.generate() for _ in range(5)] == [second.generate() for _ in range(5)]


UNMOVED = """
import random, sys
import numpy as np
random.seed(1); np.random.seed(1)
before = random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]
from harness.naming import NameGenerator
assert "coolname" not in sys.modules, "the import of harness.naming must be quick"
NameGenerator().generate()
NameGenerator().generate()
assert "coolname" in sys.modules
assert (random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]) == before
assert "torch" not in sys.modules
"""


def test_naming_moves_no_global_random_state_even_when_it_imports_coolname() -> None:
    # In a fresh process: importing coolname draws from the global random, once.
    subprocess.run([sys.executable, "-c", UNMOVED], check=True, timeout=60)
