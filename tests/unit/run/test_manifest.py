from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import RunDirError
from harness.run.manifest import read_manifest

SMALLEST = {"format": 1, "run_name": "foo", "name_source": "run_name", "status": "finished"}


def write(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps({**SMALLEST, **changes}))
    return path


def test_a_manifest_with_fields_of_a_newer_writer_is_read(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path / "run.json", future={"x": 1}))
    assert manifest.run_name == "foo"
    assert manifest.attempts == []


def test_a_later_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="format later than 1") as caught:
        read_manifest(write(tmp_path / "run.json", format=2))
    assert "version of the harness" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"format":1}', '{"format":"x"}', '{"format":null}', "[" * 100_000]
)
def test_what_is_no_manifest_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunDirError, match=r"run\.json is no manifest of a run"):
        read_manifest(tmp_path / "run.json")


def test_a_wrong_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="status"):
        read_manifest(write(tmp_path / "run.json", status=3))


def test_a_missing_manifest_and_a_link_are_errors(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="cannot read"):
        read_manifest(tmp_path / "run.json")
    write(tmp_path / "real.json")
    (tmp_path / "run.json").symlink_to("real.json")
    with pytest.raises(RunDirError, match="cannot read"):
        read_manifest(tmp_path / "run.json")
