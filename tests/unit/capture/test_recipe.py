from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.capture.options import Budget, ProfileOptions, SystemOptions
from harness.capture.recipe import Recipe, known_recipes
from harness.capture.schedule import Schedule
from harness.errors import RecipeError


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(spec: str | Path) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(spec)
    return caught.value


def test_the_recipes_that_come_with_the_package_load_and_say_what_they_are_for() -> None:
    assert {"quick", "steady", "memory", "stacks", "off"} <= set(known_recipes())
    for name in known_recipes():
        recipe = Recipe.load(name)
        assert recipe.name == name
        assert recipe.description


def test_every_recipe_but_off_records_something_and_off_nothing() -> None:
    captures = {name for name in known_recipes() if Recipe.load(name).schedule is not None}
    assert captures == set(known_recipes()) - {"off"}
    assert Recipe.load(None) == Recipe.load("off")


def test_quick_records_both_windows_within_90_steps() -> None:
    schedule = Recipe.load("quick").schedule
    assert schedule is not None
    assert [window.last_active <= 90 for window in schedule.windows()] == [True, True]


def test_memory_and_stacks_record_what_they_are_called_for() -> None:
    memory, stacks = Recipe.load("memory").profile, Recipe.load("stacks").profile
    assert (memory.profile_memory, memory.record_shapes) == (True, True)
    assert (stacks.with_stack, stacks.with_modules) == (True, True)


def test_an_unknown_name_is_refused_with_the_known_ones_and_the_nearest() -> None:
    error = refusal("qiuck")
    assert all(name in error.message for name in known_recipes())
    assert error.hint == "did you mean 'quick'?"
    assert "path of a .toml file" in (refusal("zzzz").hint or "")


def test_a_text_with_a_slash_or_the_ending_toml_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "[schedule]\nactive = 3\n")
    monkeypatch.chdir(tmp_path)
    for spec in (path, str(path), "mine.toml", "./mine.toml"):
        recipe = Recipe.load(spec)
        assert (recipe.name, recipe.schedule) == ("mine", Schedule(active=3))


def test_a_recipe_object_is_taken_as_it_is() -> None:
    recipe = Recipe(name="own", schedule=Schedule(active=1))
    assert Recipe.load(recipe) is recipe


def test_a_file_that_is_not_there_is_refused_with_its_path(tmp_path: Path) -> None:
    assert str(tmp_path / "none.toml") in refusal(tmp_path / "none.toml").message
    assert "directory" in refusal(tmp_path).message.lower()


@pytest.mark.parametrize("content", [b"[schedule\n", b"\xff\xfe", b"a = " + b"[" * 5000])
def test_a_file_that_is_no_toml_is_refused_with_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    assert f"recipe {path} is no valid TOML" in refusal(path).message


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ("shedule = 3", "unknown key shedule", "did you mean schedule?"),
        (
            "[schedule]\nactive = 4\nwarmpu = 2",
            "unknown key schedule.warmpu",
            "did you mean schedule.warmup?",
        ),
        (
            "[profile]\nwith_stacks = true",
            "unknown key profile.with_stacks",
            "did you mean profile.with_stack?",
        ),
        ("[budget]\nmax_gb = 1", "unknown key budget.max_gb; allowed are max_traces, max_bytes", None),
        ("[schedule]\nactive = 0", "schedule.active = 0", "to capture nothing use the recipe `off`"),
        ("[schedule]\nwait = 3", "schedule.active is missing", None),
        ("[schedule]\nactive = 1\nskip_first = -1", "schedule.skip_first = -1", None),
        ("schedule = 4", "schedule = 4 is no table", "write its keys below [schedule]"),
        ("[profile]\nwith_stack = 1", "profile.with_stack = 1 is neither true nor false", None),
        ('[profile]\nactivities = ["cuda"]', "profile.activities = ['cuda']", None),
        ('[profile]\nactivities = "cpu"', "profile.activities = 'cpu'", None),
        ('[profile]\nactivities = ["cpu", "tpu"]', "profile.activities = ['cpu', 'tpu']", None),
        ("[budget]\nmax_traces = 0", "budget.max_traces = 0", None),
        ("[budget]\nmax_bytes = 1e9", "budget.max_bytes = 1000000000.0", None),
        ("[system]\ninterval_s = 0", "system.interval_s = 0", None),
        ("[system]\nwindow_interval_s = nan", "system.window_interval_s = nan", None),
        ('ranks = "some"', "ranks = 'some'", None),
        ("ranks = [0, -1]", "ranks = [0, -1]", None),
        ("ranks = []", "ranks = []", None),
        ("ranks = [[0]]", "ranks = [[0]]", None),
        ("description = 3", "description = 3", None),
        ('name = "a/b"', "name = 'a/b'", None),
    ],
)
def test_a_wrong_key_or_value_is_refused_with_the_file_the_key_and_the_value(
    tmp_path: Path, text: str, told: str, hint: str | None
) -> None:
    path = write(tmp_path, text)
    error = refusal(path)
    assert error.message.startswith(f"recipe {path}: ")
    assert told in error.message
    assert hint is None or error.hint == hint


def test_a_table_of_the_wrong_class_is_refused_from_python_too() -> None:
    with pytest.raises(RecipeError, match=r"schedule = .* is no Schedule"):
        Recipe(name="own", schedule={"active": 3})  # type: ignore[arg-type]


def test_a_schedule_the_run_is_too_short_for_is_told_with_the_numbers() -> None:
    recipe = Recipe(name="late", schedule=Schedule(skip_first=10, wait=20, warmup=2, active=4))
    assert recipe.check_reachable(36) is None
    assert recipe.check_reachable(None) is None
    told = recipe.check_reachable(35)
    assert told is not None
    for part in ("'late'", "35 steps", "step 36", "skip_first 10", "wait 20", "warmup 2", "active 4"):
        assert part in told
    assert Recipe.load("off").check_reachable(1) is None


@pytest.mark.parametrize(
    ("ranks", "world_size", "captured"),
    [
        (None, 8, {0, 1, 2, 3, 4, 5, 6, 7}),
        (None, 12, {0, 4, 8}),
        ("all", 12, set(range(12))),
        ("first", 12, {0}),
        ("one-per-node", 8, {0, 4}),
        ((1, 5, 99), 8, {1, 5}),
    ],
)
def test_a_rank_rule_picks_ranks_of_machines_with_four_each(
    ranks: str | tuple[int, ...] | None, world_size: int, captured: set[int]
) -> None:
    recipe = Recipe(name="own", ranks=ranks)
    picked = {
        rank
        for rank in range(world_size)
        if recipe.captures_rank(rank=rank, local_rank=rank % 4, world_size=world_size)
    }
    assert picked == captured


@settings(deadline=None)
@given(
    recipe=st.builds(
        Recipe,
        name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
        description=st.text(),
        ranks=st.sampled_from([None, "all", "first", "one-per-node", (0, 3), (7,)]),
        schedule=st.none() | st.builds(Schedule, active=st.integers(1, 64), wait=st.integers(0, 10**12)),
        profile=st.builds(
            ProfileOptions,
            activities=st.sampled_from([("cpu",), ("cpu", "cuda"), ["cuda", "cpu"]]),
            with_stack=st.booleans(),
        ),
        budget=st.builds(Budget, max_bytes=st.integers(1, 10**15)),
        system=st.builds(SystemOptions, interval_s=st.floats(0.01, 1e9)),
    )
)
def test_a_recipe_written_as_toml_loads_to_an_equal_one(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe
) -> None:
    path = write(tmp_path_factory.mktemp("recipes"), recipe.to_toml(), name="other.toml")
    assert Recipe.load(path) == recipe
