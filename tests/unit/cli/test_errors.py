from __future__ import annotations

from pathlib import Path

import click
import pytest

from harness.cli.errors import BUG, INTERRUPTED, RUN_FAILED, USAGE, FailedRunError, tell
from harness.cli.terminal import StdoutError
from harness.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    HarnessError,
    LossError,
    MissingExtraError,
    RecipeError,
    RunDirError,
    RunDirExistsError,
    RunLockedError,
    RunNameError,
    TemplateError,
    WorkloadError,
)
from harness.run.durable import write_atomically

Stderr = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _not_under_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAKELEVEL", raising=False)


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ConfigError, USAGE),
        (RunNameError, USAGE),
        (TemplateError, USAGE),
        (RecipeError, USAGE),
        (WorkloadError, USAGE),
        (RunDirError, USAGE),
        (RunDirExistsError, USAGE),
        (RunLockedError, USAGE),
        (MissingExtraError, USAGE),
        (DataError, USAGE),
        (LossError, USAGE),
        (CheckpointError, USAGE),
    ],
)
def test_an_error_is_its_message_its_hint_and_no_traceback(kind: type[HarnessError], code: int, capsys: Stderr) -> None:
    assert tell(raised(kind("what is wrong", hint="what to do"))) == code
    captured = capsys.readouterr()
    assert captured.err == "error: what is wrong\nhint: what to do\n"
    assert captured.out == ""


def test_make_users_are_told_their_words_for_the_ways_on(monkeypatch: pytest.MonkeyPatch, capsys: Stderr) -> None:
    tell(RunDirExistsError("there is a run"))
    assert "RESUME=1" not in capsys.readouterr().err
    monkeypatch.setenv("MAKELEVEL", "1")
    tell(RunDirExistsError("there is a run"))
    assert "RESUME=1, OVERWRITE=1 and RUN=" in capsys.readouterr().err


def test_a_bug_shows_its_traceback(capsys: Stderr) -> None:
    assert tell(raised(KeyError("oops"))) == BUG
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "KeyError: 'oops'" in err
    assert "bug of the harness" in err


def test_a_failed_run_shows_the_users_traceback_and_where_the_run_is(capsys: Stderr) -> None:
    assert tell(raised(FailedRunError("foo", "runs/foo"), raised(EOFError("of the user")))) == RUN_FAILED
    err = capsys.readouterr().err
    assert "EOFError: of the user" in err
    assert "FailedRunError" not in err
    assert err.splitlines()[-1] == "error: run foo failed; what it wrote until then is in runs/foo"


def test_a_run_that_failed_for_a_known_reason_shows_its_message_and_what_caused_it(capsys: Stderr) -> None:
    cause = raised(ValueError("of the user"))
    error = raised(DataError("the dataloader raised", hint="mend it"), cause)
    error.add_note("while loading step 3")
    assert tell(raised(FailedRunError("foo", "runs/foo"), error)) == RUN_FAILED
    lines = capsys.readouterr().err.splitlines()
    assert "ValueError: of the user" in lines
    assert lines[-4:-1] == ["error: the dataloader raised", "while loading step 3", "hint: mend it"]


def test_what_the_harness_raised_itself_is_told_without_a_traceback(tmp_path: Path, capsys: Stderr) -> None:
    try:
        write_atomically(tmp_path / "not there" / "run.json", b"{}")
    except RunDirError as refused:
        error = raised(CheckpointError("cannot be saved: the disk is full"), refused)
    assert tell(raised(FailedRunError("foo", "runs/foo"), error)) == RUN_FAILED
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert told.startswith("error: cannot be saved: the disk is full\n")


def test_control_characters_of_an_exception_are_escaped(capsys: Stderr) -> None:
    tell(raised(ConfigError("name \x1b[2J\rforged")))
    tell(raised(KeyError("\u202e")))
    err = capsys.readouterr().err
    assert "\\x1b[2J" in err
    assert not {"\x1b", "\r", "\u202e"} & set(err)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), INTERRUPTED),
        (SystemExit(143), 143),
        (SystemExit(None), 0),
        (SystemExit("words"), 1),
        (click.exceptions.Exit(0), 0),
        (click.UsageError("no such option"), USAGE),
        (StdoutError("cannot write"), USAGE),
    ],
)
def test_other_ends_have_the_codes_people_expect(error: BaseException, code: int) -> None:
    assert tell(error) == code


def test_wrong_use_names_the_help_of_the_command(capsys: Stderr) -> None:
    context = click.Context(click.Command("train"), info_name="harness train")
    tell(click.UsageError("No such option '--bogus'.", ctx=context))
    assert capsys.readouterr().err == "error: No such option '--bogus'.\nhint: harness train --help\n"
