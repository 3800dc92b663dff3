from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

import pytest

from harness.errors import WorkloadError
from harness.workloads.options import convert_options

if TYPE_CHECKING:
    from nowhere import Unimported


def build(
    depth: int,
    lr: float = 0.1,
    shuffle: bool = True,
    title: str = "",
    data: Path = Path(),
    limit: int | None = None,
    folder: Optional[Path] = None,  # noqa: UP045  users still write it
    mode: Literal["fast", "exact", 3] = "fast",
    either: Union[int, str] = 0,  # noqa: UP007
    *,
    anything: Any = None,
    by_default=7,
    plain=None,
    sizes: list[int] = [],  # noqa: B006
    typed: Unimported = None,
) -> None: ...


def convert(**options: str) -> Any:
    (name,) = options
    return convert_options(build, {"depth": "1", **options}, workload="w")[name]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("depth", "12", 12),
        ("depth", "-3", -3),
        ("lr", "3e-4", 3e-4),
        ("lr", "1", 1.0),
        ("shuffle", "false", False),
        ("shuffle", "0", False),
        ("shuffle", "Yes", True),
        ("shuffle", "on", True),
        ("title", "12", "12"),
        ("title", "", ""),
        ("data", "a/b", Path("a/b")),
        ("limit", "5", 5),
        ("limit", "none", None),
        ("folder", "none", None),
        ("folder", "x", Path("x")),
        ("mode", "exact", "exact"),
        ("mode", "3", 3),
        ("either", "4", 4),
        ("either", "four", "four"),
        ("anything", "1", "1"),
        ("by_default", "9", 9),
        ("plain", "9", "9"),
    ],
)
def test_text_becomes_a_value_of_the_annotated_type(name: str, text: str, value: object) -> None:
    converted = convert(**{name: text})
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("depth", "two", "a whole number"),
        ("depth", "2.5", "a whole number"),
        ("depth", "", "a whole number"),
        ("lr", "fast", "a number"),
        ("lr", "nan", "a number"),
        ("shuffle", "maybe", "true or false"),
        ("mode", "slow", "one of fast, exact, 3"),
        ("limit", "many", "a whole number or none"),
    ],
)
def test_text_of_another_type_is_refused_with_option_value_and_expectation(name: str, text: str, expected: str) -> None:
    with pytest.raises(WorkloadError, match=f"option '{name}' of workload 'w': '{text}' is not {expected}"):
        convert(**{name: text})


def test_unknown_option_is_refused_with_the_nearest_and_all_others() -> None:
    with pytest.raises(WorkloadError) as caught:
        convert_options(build, {"depht": "1"}, workload="w")
    assert caught.value.message == "workload 'w' has no option 'depht'"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean 'depth'? its options are anything, by_default, data, depth")


def test_option_of_a_build_without_options_is_refused() -> None:
    with pytest.raises(WorkloadError, match="workload 'w' takes no options, got 'lr'"):
        convert_options(lambda: None, {"lr": "1"}, workload="w")


def test_option_without_a_default_must_be_given() -> None:
    with pytest.raises(WorkloadError, match=r"(?s)needs the option 'depth'.*-o depth="):
        convert_options(build, {"lr": "1"}, workload="w")


def test_open_keyword_arguments_take_unknown_options_as_text() -> None:
    def open_build(lr: float = 0.1, **rest: str) -> None: ...

    assert convert_options(open_build, {"lr": "1", "colour": "3"}, workload="w") == {"lr": 1.0, "colour": "3"}


def test_name_of_the_open_keyword_arguments_is_no_option_of_its_own() -> None:
    def open_build(**rest: int) -> None: ...

    assert convert_options(open_build, {"rest": "x"}, workload="w") == {"rest": "x"}


def test_type_that_no_text_can_spell_is_refused_only_when_it_is_used() -> None:
    assert convert(lr="1") == 1.0
    with pytest.raises(WorkloadError, match=r"option 'sizes'.*list\[int\], which cannot be given as text"):
        convert(sizes="1,2")


def test_type_imported_for_type_checkers_only_is_refused_only_when_it_is_used() -> None:
    assert convert(lr="1") == 1.0
    with pytest.raises(WorkloadError, match=r"option 'typed'.*'Unimported', which is not found"):
        convert(typed="x")


def test_parameter_that_is_positional_only_is_refused() -> None:
    def positional(depth: int, /) -> None: ...

    with pytest.raises(WorkloadError, match="'depth' cannot be given by name"):
        convert_options(positional, {}, workload="w")


class Builder:
    def __init__(self, depth: int = 1) -> None: ...


class Callable_:
    def __call__(self, depth: int = 1) -> None: ...


@pytest.mark.parametrize(
    "kind", [Builder, functools.partial(build, lr=0.2), Callable_()], ids=["class", "partial", "object"]
)
def test_classes_partials_and_callable_objects_are_read_like_functions(kind: Any) -> None:
    assert convert_options(kind, {"depth": "4"}, workload="w") == {"depth": 4}
