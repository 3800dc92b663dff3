from __future__ import annotations

import copy
import itertools
import os
import pickle
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.errors import ConfigError, TemplateError
from harness.naming.fields import FIELDS, LOCAL_FIELDS, REMOTE_FIELDS, FieldKind
from harness.naming.template import Template

VALUES: dict[str, int | str] = {name: field.example for name, field in FIELDS.items()}
INTEGERS = sorted(name for name, field in FIELDS.items() if field.kind is FieldKind.INT)

ARABIC_ZERO = "\u0660"  # a digit to str.isdigit, to int() and to \\d
TRACE = "{run_name}/traces/rank{rank}.{batch:06d}.pt.trace.json.gz"
CHECKPOINT = "{run_name}/checkpoints/ep{epoch}-ba{batch}-rank{rank}.pt"


def make(text: str) -> Template:
    return Template.compile(text, option="save_filename")


# --- formatting ---


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("{run_name}", "foo"),
        ("{run_name}/logs-rank{rank}.txt", "foo/logs-rank3.txt"),
        (TRACE, "foo/traces/rank3.000012.pt.trace.json.gz"),
        (CHECKPOINT, "foo/checkpoints/ep1-ba12-rank3.pt"),
        ("latest.pt", "latest.pt"),
        ("{epoch:01d}_{batch:020d}", "1_00000000000000000012"),
        ("{date}T{time}Z", "20220716T005018Z"),
        ("{date}{time}-{run_name}", "20220716005018-foo"),
        ("a=b+c@d e/{rank}", "a=b+c@d e/3"),
        ("{rank}/{rank}-{rank:02d}", "3/3-03"),
    ],
)
def test_a_template_writes_a_path_and_reads_it_back(text: str, path: str) -> None:
    values = VALUES | {"run_name": "foo", "rank": 3, "epoch": 1, "batch": 12}
    template = make(text)
    assert template.text == text
    assert template.format(values) == path
    assert template.parse(path) == {name: values[name] for name in template.fields}


def test_fields_are_listed_once_in_the_order_of_their_first_use() -> None:
    assert make("{rank}/{run_name}-{rank}").fields == ("rank", "run_name")


def test_every_local_field_formats_its_example() -> None:
    for name in LOCAL_FIELDS:
        assert make(f"{{{name}}}").format(VALUES) == str(FIELDS[name].example)


def test_a_remote_file_name_keeps_its_folders_in_a_store_and_is_unknown_elsewhere() -> None:
    template = Template.compile("{run_name}/{remote_file_name}", option="store", fields=REMOTE_FIELDS)
    values = {"run_name": "foo", "remote_file_name": "traces/rank0.000012.pt.trace.json.gz"}
    assert template.format(values) == "foo/traces/rank0.000012.pt.trace.json.gz"
    assert template.parse(template.format(values)) == values
    with pytest.raises(TemplateError, match=r"\{remote_file_name\}' has no value here"):
        make("{remote_file_name}")


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a/../b", "a/.b", "a\\b", "", "a/", "x" * 201, "a/b/c/d/e/f/g"])
def test_an_unsafe_remote_file_name_is_refused(name: str) -> None:
    template = Template.compile("{remote_file_name}", option="store", fields=REMOTE_FIELDS)
    with pytest.raises(TemplateError, match="remote_file_name"):
        template.format({"remote_file_name": name})
    assert template.parse(name) is None


def test_numpy_integers_are_integers() -> None:
    assert make("{rank}-{batch:03d}").format({"rank": np.int64(1), "batch": np.uint8(7)}) == "1-007"
    assert make("{rank}-{batch:03d}").parse("1-007", rank=np.int64(1)) == {"rank": 1, "batch": 7}


@pytest.mark.parametrize("value", [-1, 2**64, 1.0, "1", None, "x" * 300])
def test_an_integer_field_refuses_anything_but_an_integer_from_zero(value: object) -> None:
    template = make("{run_name}-{rank}")
    for _ in range(2):  # the second time, the texts are known to be safe and are not looked at again
        with pytest.raises(TemplateError, match=r"^save_filename=.*\{rank\} cannot be"):
            template.format({"run_name": "foo", "rank": value})  # type: ignore[dict-item]
        assert template.format({"run_name": "foo", "rank": 2**64 - 1}) == "foo-18446744073709551615"


@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "a\0",
        "a\n",
        "a b",
        "é",
        "٣",
        "\ud800",
        "-a",
        ".a",
        "a.",
        "x" * 129,
        5,
        None,
    ],
)
@pytest.mark.parametrize("field", ["run_name", "hostname"])
def test_a_text_field_refuses_what_is_not_safe_in_a_path(field: str, value: object) -> None:
    template = make(f"{{{field}}}/logs.txt")
    assert template.format({field: "foo"}) == "foo/logs.txt"
    with pytest.raises(TemplateError, match=rf"\{{{field}\}} cannot be") as caught:
        template.format({field: value})  # type: ignore[dict-item]
    assert str(caught.value).replace("\n", "").isprintable()
    assert template.format({field: "foo"}) == "foo/logs.txt"


@pytest.mark.parametrize(
    ("field", "value"),
    [("date", "2022-07-16"), ("date", "2022071"), ("time", "12:00:00"), ("time", ARABIC_ZERO * 6)],
)
def test_dates_and_times_have_a_fixed_number_of_digits(field: str, value: str) -> None:
    with pytest.raises(TemplateError, match=field):
        make(f"{{{field}}}").format({field: value})


def test_a_missing_value_is_an_error_that_names_the_field() -> None:
    for text in ("{run_name}/{rank}", "{rank}", "{run_name}", "{rank}-{batch}-{epoch}"):
        with pytest.raises(TemplateError, match=r"has no value yet"):
            make(text).format({"batch": 1})


def test_a_name_too_long_for_the_disk_is_refused_in_both_directions() -> None:
    template = make("{run_name}-{hostname}")
    values = {"run_name": "r" * 120, "hostname": "h" * 120}
    with pytest.raises(TemplateError, match="more than 200 characters"):
        template.format(values)
    assert template.parse("r" * 120 + "-" + "h" * 120) is None
    assert make("{run_name}/{hostname}").format(values) == "r" * 120 + "/" + "h" * 120


# --- mistakes in templates ---

REFUSED = {
    "{run_nmae}/logs.txt": "unknown",
    "{Rank}": "unknown",
    "{}": "unknown",
    "{0}": "unknown",
    "{batch.__class__}": "attributes",
    "{rank.real}": "attributes",
    "{rank!r}": "conversions",
    "{x[0]}": "items",
    "{batch[0].__init__.__globals__}": "items",
    "{ rank }": "cannot be in a field",
    "{rank-1}": "cannot be in a field",
    "{../x}": "attributes",
    "{batch:>200000000}": "padding with zeros",
    "{batch:d}": "padding with zeros",
    "{batch:6d}": "padding with zeros",
    "{batch:00d}": "padding with zeros",
    "{batch:021d}": "padding with zeros",
    "{batch:0200000000d}": "padding with zeros",
    "{batch:06x}": "padding with zeros",
    "{batch:06d\n}": "padding with zeros",
    "{batch:}": "padding with zeros",
    f"{{batch:{ARABIC_ZERO}6d}}": "padding with zeros",
    "{run_name:06d}": "text field takes no format",
    "{run_name:}": "text field takes no format",
    "{batch:{rank}}": "partner",
    "{{batch}}": "partner",
    "{batch": "partner",
    "batch}": "partner",
    "": "empty",
    "  ": "empty",
    "/logs.txt": "absolute",
    "/{run_name}": "absolute",
    "../{run_name}": "'..'",
    "{run_name}/../x": "'..'",
    "{run_name}/..": "'..'",
    "{run_name}/./x": "'.'",
    "{run_name}//x": "empty name",
    "{run_name}/": "empty name",
    "{run_name}\\x": "backslash",
    "C:/{run_name}": "U+003A",
    "~/{run_name}": "U+007E",
    "$HOME/{run_name}": "U+0024",
    "100%{run_name}": "U+0025",
    "{run_name}\0": "U+0000",
    "{run_name}\n": "U+000A",
    "{run_name}\u202e": "U+202E",
    "{run_name}\ud800": "U+D800",
    "{run_name}🚀": "U+1F680",
    "é{rank}": "U+00E9",
    "x" * 513: "512",
    "x" * 300: "200",
    "a/b/c/d/e/f/{rank}": "at most 6",
    ".hidden/{rank}": "starts with",
    "-rf/{rank}": "starts with",
    " x/{rank}": "starts with",
    "{run_name}./x": "ends with",
    "{run_name} /x": "ends with",
    "nul.{rank}": "Windows",
    "com{rank}.txt": "Windows",
    "{epoch}{batch}": "run into each other",
    "{epoch:06d}{batch}": "run into each other",
    "{epoch}0{batch}": "run into each other",
    "{epoch}{date}{batch}": "run into each other",
    "{run_name}{rank}": "run into each other",
    "{rank}{hostname}": "run into each other",
    "{run_name}{hostname}": "run into each other",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_mistake_in_a_template_is_found_when_it_is_compiled(text: str) -> None:
    with pytest.raises(TemplateError) as caught:
        make(text)
    error = caught.value
    assert error.message.startswith("save_filename=")
    assert REFUSED[text] in error.message
    assert error.hint is not None
    assert error.hint.endswith("Fields: " + " ".join(name for name in FIELDS if name in LOCAL_FIELDS))
    assert str(error).replace("\n", "").isprintable()
    assert len(str(error)) < 800


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("{run_nmae}", "{run_name}"),
        ("{Rank}", "{rank}"),
        ("{ rank }", "{rank}"),
        ("{batch.__class__}", "{batch}"),
        ("{worldsize}", "{world_size}"),
        ("{epochs!r}", "{epoch}"),
        ("{batch:6d}", "{batch:06d}"),
        ("{hostname:s}", "{hostname}"),
    ],
)
def test_a_mistake_is_shown_with_the_field_and_the_nearest_right_one(wrong: str, right: str) -> None:
    with pytest.raises(TemplateError) as caught:
        make(f"foo/{wrong}.txt")
    assert wrong in caught.value.message
    assert caught.value.hint is not None
    assert right in caught.value.hint.split(" Fields:")[0]


def test_only_fields_that_have_a_value_there_are_allowed() -> None:
    with pytest.raises(TemplateError, match=r"(?s)\{epoch\}' has no value here.*Fields: run_name rank$"):
        Template.compile("{run_name}-{epoch}", option="logs", fields=["rank", "run_name"])
    with pytest.raises(TemplateError, match="no such field as 'rnak'"):
        Template.compile("{run_name}", option="logs", fields=["run_name", "rnak"])


@pytest.mark.parametrize("text", [None, 5, b"{rank}", Path("x")])
def test_a_template_that_is_no_text_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match=type(text).__name__):
        make(text)  # type: ignore[arg-type]


# --- reading paths ---


@pytest.mark.parametrize(
    "path",
    [
        "foo/checkpoints/ep1-ba57-rank0.pt.tmp",
        "foo/checkpoints/ep1-ba57-rank0.pt\n",
        "foo/checkpoints/ep01-ba57-rank0.pt",
        "foo/checkpoints/ep1-ba-rank0.pt",
        "foo/checkpoints/ep1-ba+7-rank0.pt",
        "foo/checkpoints/ep1-ba٣-rank0.pt",
        "foo/checkpoints/ep1-ba18446744073709551616-rank0.pt",
        "../checkpoints/ep1-ba57-rank0.pt",
        "/foo/checkpoints/ep1-ba57-rank0.pt",
        "a/b/checkpoints/ep1-ba57-rank0.pt",
        "",
        "x" * 100_000,
        "foo/checkpoints/ep1-ba" + "9" * 5000 + "-rank0.pt",
    ],
)
def test_a_path_the_template_cannot_have_made_reads_as_none(path: str) -> None:
    assert make(CHECKPOINT).parse(path) is None


def test_padding_is_read_only_as_it_would_be_written() -> None:
    template = make("{batch:03d}")
    assert template.parse("007") == {"batch": 7}
    assert template.parse("1234") == {"batch": 1234}
    assert template.parse("7") is None
    assert template.parse("0007") is None


def test_a_field_that_stands_twice_must_have_one_value() -> None:
    template = make("{run_name}/{run_name}-{rank}-{rank}.txt")
    assert template.parse("foo/foo-3-3.txt") == {"run_name": "foo", "rank": 3}
    assert template.parse("foo/bar-3-3.txt") is None
    assert template.parse("foo/foo-3-33.txt") is None


def test_a_number_that_stands_twice_with_two_paddings_must_have_one_value() -> None:
    template = make("{run_name}/{run_name}-rank{rank:02d}-{rank}.txt")
    assert template.parse("foo/foo-rank03-3.txt") == {"run_name": "foo", "rank": 3}
    assert template.parse("foo/bar-rank03-3.txt") is None
    assert template.parse("foo/foo-rank03-4.txt") is None


def test_a_path_with_two_readings_is_an_error_until_one_value_is_known() -> None:
    template = make("{run_name}-{hostname}.txt")
    assert template.parse("foo-node1.txt") == {"run_name": "foo", "hostname": "node1"}
    with pytest.raises(TemplateError, match=r"(?s)more than one way.*run_name=\.\.\."):
        template.parse("a-b-c.txt")
    assert template.parse("a-b-c.txt", run_name="a") == {"run_name": "a", "hostname": "b-c"}
    assert template.parse("a-b-c.txt", hostname="c") == {"run_name": "a-b", "hostname": "c"}
    assert template.parse("a-b-c.txt", run_name="b") is None


def test_known_values_must_match_and_are_checked() -> None:
    template = make(TRACE)
    path = "foo/traces/rank3.000012.pt.trace.json.gz"
    assert template.parse(path, rank=3, batch=12) == {"run_name": "foo", "rank": 3, "batch": 12}
    assert template.parse(path, rank=2) is None
    assert template.parse(path, epoch=2) == {"run_name": "foo", "rank": 3, "batch": 12}
    with pytest.raises(TemplateError, match=r"no field \{rnak\}"):
        template.parse(path, rnak=3)
    with pytest.raises(TemplateError, match=r"\{rank\} cannot be -1"):
        template.parse(path, rank=-1)
    with pytest.raises(TemplateError, match=r"\{run_name\} cannot be '.*'"):
        template.parse(path, run_name=".*")


def test_a_hostile_path_is_read_in_no_time() -> None:
    # Two open fields and a tail that never fits: the number of tries must stay small.
    template = make("{run_name}-{hostname}-{rank}-{batch}.pt")
    for _ in range(5):
        assert template.parse("-".join("1" * 100) + "!") is None


def test_a_template_can_be_copied_pickled_and_compared() -> None:
    template = make(TRACE)
    values = {"run_name": "foo", "rank": 3, "batch": 12}
    for twin in (pickle.loads(pickle.dumps(template)), copy.deepcopy(template), make(TRACE)):
        assert twin == template
        assert hash(twin) == hash(template)
        assert twin.format(values) == template.format(values)
        with pytest.raises(TemplateError, match=r"^save_filename="):
            twin.format({})
    assert template != make(CHECKPOINT)
    assert template != TRACE


# --- properties ---

NAMES = st.text(alphabet="abcXYZ0189._-", min_size=1, max_size=12).filter(
    lambda name: name[0] not in ".-" and name[-1] != "."
)
ALL_VALUES = st.fixed_dictionaries(
    {
        "run_name": NAMES,
        "hostname": NAMES,
        "date": st.sampled_from(["20220716", "00000000", "11111111"]),
        "time": st.sampled_from(["005018", "000000", "111111"]),
        **{name: st.integers(0, 2**64 - 1) | st.integers(0, 200) for name in ("rank", "batch", "epoch")},
    }
)
PLACEHOLDERS = st.sampled_from(
    [
        *("{run_name}", "{hostname}", "{date}", "{time}", "{rank}", "{batch}", "{epoch}"),
        *("{rank:02d}", "{batch:06d}", "{epoch:020d}", "{batch:01d}"),
    ]
)
SEPARATORS = st.sampled_from(["-", "-", "_", ".", "/", "-ep", "1-", "-0", "+@=", ""])
TEMPLATES = st.lists(st.tuples(SEPARATORS, PLACEHOLDERS), min_size=1, max_size=5).map(
    lambda pairs: "x" + "".join(separator + placeholder for separator, placeholder in pairs)
)


def compiled(text: str) -> Template:
    try:
        return make(text)
    except TemplateError:
        assume(False)
        raise


@given(TEMPLATES, ALL_VALUES)
@settings(max_examples=250, deadline=None)
def test_what_a_template_writes_it_reads_back(text: str, values: dict[str, int | str]) -> None:
    template = compiled(text)
    try:
        path = template.format(values)
    except TemplateError as error:
        assert "more than 200 characters" in error.message  # noqa: PT017
        return
    used = {name: values[name] for name in template.fields}
    assert template.parse(path, **used) == used
    known = {name: values[name] for name in ("run_name",) if name in used}
    assert template.parse(path, **known) == used
    try:
        assert template.parse(path) == used
    except TemplateError:
        assert {"run_name", "hostname"} <= used.keys()


@given(TEMPLATES, st.text(alphabet="a01._-/", max_size=8).map("x{}".format))
@settings(max_examples=250, deadline=None)
def test_what_a_template_reads_it_would_write(text: str, path: str) -> None:
    template = compiled(text)
    try:
        values = template.parse(path)
    except TemplateError:
        return
    assert values is None or template.format(values) == path


SMALL: Mapping[str, tuple[int | str, ...]] = {
    "run_name": ("a", "a-a", "1", "a-1", "1-1", "a1"),
    "hostname": ("a", "a-a", "1", "a-1", "1-a"),
    "rank": (0, 1, 10, 11, 111),
    "batch": (0, 1, 11, 10),
    "date": ("11111111", "00000001"),
}
SMALL_PARTS = [*(f"{{{name}}}" for name in SMALL), "{rank:02d}", "-", "-", "-", "1", "a", "/"]


@given(st.lists(st.sampled_from(SMALL_PARTS), min_size=2, max_size=6).map("".join))
@settings(max_examples=150, deadline=None)
def test_values_are_read_only_from_a_path_that_no_other_values_make(text: str) -> None:
    template = compiled(text)
    makers: defaultdict[str, list[dict[str, int | str]]] = defaultdict(list)
    for values in itertools.product(*(SMALL[name] for name in template.fields)):
        used = dict(zip(template.fields, values, strict=True))
        makers[template.format(used)].append(used)
    for path, sources in makers.items():
        if len(sources) > 1:
            assert {"run_name", "hostname"} <= set(template.fields), "different values gave the same file"
            with pytest.raises(TemplateError, match="more than one way"):
                template.parse(path)


PIECES = st.sampled_from(
    [
        *(
            "..",
            "../",
            "/..",
            "/../",
            "/./",
            ".",
            "/",
            "//",
            "~",
            "$x",
            " ",
            "-",
            "a",
            "{rank}",
            "{batch:06d}",
        ),
        *(
            "{",
            "}",
            "{{",
            "\\",
            "..\\",
            "\0",
            "%s",
            "%(a)s",
            "%",
            ":",
            "C:",
            "\n",
            "{a}",
            "{a.b}",
            "é",
            "\u202e",
        ),
    ]
)


@st.composite
def hostile(draw: st.DrawFn) -> str:
    text: str = draw(TEMPLATES)
    for piece in draw(st.lists(PIECES | st.text(max_size=2), max_size=2)):
        cut = draw(st.integers(0, len(text)))
        text = text[:cut] + piece + text[cut:]
    return text


@given(hostile())
@settings(max_examples=1200, deadline=None)
def test_no_template_leaves_the_root(text: str) -> None:
    try:
        template = make(text)
    except TemplateError:
        return
    path = template.format(VALUES)
    root = os.path.realpath("/srv/runs")
    assert os.path.realpath(os.path.join(root, path)).startswith(root + "/")  # noqa: PTH118
    assert not path.startswith("/")
    assert not {"", ".", ".."} & set(path.split("/"))
    assert not set(path) & set("\\\0{}%")


@given(
    st.dictionaries(
        st.sampled_from(["run_name", "hostname", "date", "rank"]),
        st.text(max_size=6) | st.integers() | st.floats(),
    )
)
@settings(max_examples=300, deadline=None)
def test_no_value_leaves_the_root(values: dict[str, int | str]) -> None:
    template = make("{run_name}/{hostname}-{date}/{rank}")
    try:
        path = template.format(values)
    except TemplateError:
        return
    assert re.fullmatch(r"\w[\w.-]*/\w[\w.-]*-[0-9]{8}/[0-9]+", path, re.ASCII)
    assert not {".", ".."} & set(path.split("/"))
