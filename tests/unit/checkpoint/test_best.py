from __future__ import annotations

import pytest

from harness.checkpoint.best import BestSoFar, SaveBest
from harness.checkpoint.index import IndexEntry
from harness.errors import ConfigError

NAN = float("nan")


def entry(step: int, value: float | None, metric: str | None = "loss") -> IndexEntry:
    return IndexEntry(size_bytes=1, crc32c="0", step=step, epoch=0, saved="", metric=metric, value=value)


INDEX = {
    "a": entry(1, 0.5),
    "b": entry(2, 0.3),
    "c": entry(3, 0.3),
    "nan": entry(4, NAN),
    "none": entry(5, None, None),
    "other": entry(6, 0.1, "accuracy"),
}


def test_a_text_says_metric_mode_and_number() -> None:
    assert SaveBest.parse("loss/eval/total:min") == SaveBest("loss/eval/total", "min", 1)
    assert SaveBest.parse(" accuracy : max : 3 ") == SaveBest("accuracy", "max", 3)


@pytest.mark.parametrize(
    "text", ["", "loss", "loss:", "loss:least", ":min", "loss:min:0", "loss:min:x", "a:b:min:1", 3]
)
def test_what_is_not_understood_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="save_best=") as caught:
        SaveBest.parse(text)
    assert "loss/eval/total:min:3" in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "k", "names"), [("min", 1, ["b"]), ("min", 2, ["b", "c"]), ("max", 1, ["a"]), ("max", 9, ["a", "b", "c"])]
)
def test_ranked_by_value_the_earlier_first_where_equal(mode: str, k: int, names: list[str]) -> None:
    assert SaveBest("loss", mode, k).ranked(INDEX) == names


@pytest.mark.parametrize(
    ("mode", "k", "values", "taken"),
    [
        ("min", 1, [3, 2, 2, 4, NAN, 1, float("-inf")], [True, True, False, False, False, True, False]),
        ("max", 2, [1, 2, 3, 2.5, 2.5, 9], [True, True, True, True, False, True]),
    ],
)
def test_a_value_is_taken_when_it_is_one_of_the_best(mode: str, k: int, values: list[float], taken: list[bool]) -> None:
    best = BestSoFar(SaveBest("loss", mode, k), {})
    assert [best.take(value) for value in values] == taken


def test_values_of_earlier_attempts_count() -> None:
    best = BestSoFar(SaveBest("loss", "min"), INDEX)
    assert best.is_known
    assert not best.take(0.4)
    assert best.take(0.2)
