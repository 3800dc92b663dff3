"""The commands that read, run in this process."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from harness.capture.recipe import Recipe, known_recipes
from harness.cli import main
from harness.cli.terminal import set_up_logging
from harness.run.directory import RunDirectory
from harness.run.manifest import RunFacts
from harness.run.manifest_file import ManifestFile

Captured = pytest.CaptureFixture[str]


def make_run(root: Path, name: str, *, unix_s: int = 1_700_000_000) -> None:
    claimed = RunDirectory.claim(root, name)
    facts = RunFacts(run_name=name, name_source="run_name", argv=["harness", "train", name], pid=1, host="here")
    manifest = ManifestFile.start(claimed.manifest_path, facts, unix_ns=lambda: unix_s * 10**9)
    manifest.set_progress(7, 1)
    manifest.add_artifact("trace", "traces/a.json", size_bytes=1500, step=3)
    manifest.end_attempt("failed", "ValueError: boom")
    claimed.release()


def test_ls_shows_the_newest_run_first(tmp_path: Path, capsys: Captured) -> None:
    make_run(tmp_path, "older", unix_s=1_700_000_000)
    make_run(tmp_path, "newer", unix_s=1_700_000_001)
    assert main(["ls", "--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["name", "status", "started"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["newer", "failed", "2023-11-14", "22:13:21"],
        ["older", "failed", "2023-11-14", "22:13:20"],
    ]


def test_ls_as_json_is_one_document(tmp_path: Path, capsys: Captured) -> None:
    make_run(tmp_path, "foo")
    assert main(["ls", "--root", str(tmp_path), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["run_name"], run["status"], run["step"], run["traces"]) == ("foo", "failed", 7, 1)


def test_ls_without_runs_says_how_to_make_one_and_is_fine(tmp_path: Path, capsys: Captured) -> None:
    assert main(["ls", "--root", str(tmp_path / "none")]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "harness profile foo" in captured.err
    assert main(["ls", "--root", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_the_root_comes_from_the_environment_too(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path, "foo")
    monkeypatch.setenv("HARNESS_ROOT", str(tmp_path))
    assert main(["ls"]) == 0
    assert "foo" in capsys.readouterr().out


def test_an_empty_root_is_refused(capsys: Captured) -> None:
    assert main(["ls", "--root", ""]) == 2
    assert "--root" in capsys.readouterr().err


def test_show_has_attempts_files_and_why_the_run_failed(tmp_path: Path, capsys: Captured) -> None:
    make_run(tmp_path, "foo")
    assert main(["show", "foo", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "foo (failed)" in out
    assert "attempt 1: ValueError: boom" in out
    assert "harness train foo" in out
    assert "traces/a.json" in out


def test_show_as_json_is_the_manifest_and_what_was_computed(tmp_path: Path, capsys: Captured) -> None:
    make_run(tmp_path, "foo")
    assert main(["show", "foo", "--root", str(tmp_path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["attempts"][0]["error"] == "ValueError: boom"
    assert shown["artifacts"][0]["path"] == "traces/a.json"
    assert shown["directory"] == str(tmp_path / "foo")
    assert (shown["steps"], shown["evaluation"], shown["problems"]) == (None, None, [])


def test_show_of_an_unknown_run_names_one_like_it(tmp_path: Path, capsys: Captured) -> None:
    make_run(tmp_path, "baseline")
    assert main(["show", "basline", "--root", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "did you mean baseline?" in captured.err


@pytest.mark.parametrize("name", ["../x", "", "a/b"])
def test_show_takes_names_and_no_paths(tmp_path: Path, name: str, capsys: Captured) -> None:
    assert main(["show", name, "--root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: run_name=")


def test_profiles_lists_all_recipes_with_what_they_are_for(capsys: Captured) -> None:
    assert main(["profiles"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(known_recipes())
    assert all(len(line.split()) > 3 for line in lines)
    assert main(["profiles", "--json"]) == 0
    assert [recipe["name"] for recipe in json.loads(capsys.readouterr().out)] == list(known_recipes())


def test_a_printed_recipe_is_a_recipe(tmp_path: Path, capsys: Captured) -> None:
    assert main(["profiles", "quick"]) == 0
    path = tmp_path / "quick.toml"
    path.write_text(capsys.readouterr().out)
    assert Recipe.load(path) == Recipe.load("quick")
    assert main(["profiles", str(path)]) == 0
    path.write_text(capsys.readouterr().out)
    assert Recipe.load(path) == Recipe.load("quick")


def test_an_unknown_recipe_lists_the_known(capsys: Captured) -> None:
    assert main(["profiles", "quikc"]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'quick'?" in err
    assert all(name in err for name in known_recipes())


def test_tensorboard_of_a_folder_that_is_not_there_is_refused(tmp_path: Path, capsys: Captured) -> None:
    assert main(["tensorboard", "--root", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_no_command_shows_the_help_and_is_wrong_use(capsys: Captured) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_logging_is_short_escaped_and_set_up_once(capsys: Captured) -> None:
    set_up_logging()
    set_up_logging()
    logging.getLogger("harness.somewhere").info("reads %s", "a\x1b[2J")
    logging.getLogger("harness.somewhere").warning("took %d s\nand more", 3)
    logging.getLogger("other").info("not for the user")
    assert capsys.readouterr().err.splitlines() == ["reads a\\x1b[2J", "warning: took 3 s", "and more"]
