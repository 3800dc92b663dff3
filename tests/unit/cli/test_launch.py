"""What `harness train` refuses before anything heavy is imported or made on the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cli.launch import TrainRequest, launch
from harness.errors import ConfigError, RecipeError, RunNameError

REQUEST = TrainRequest(
    run_name="foo",
    workload="digits",
    options={},
    profile="off",
    max_duration=None,
    eval_interval="1ep",
    save_interval="1ep",
    save_num_checkpoints_to_keep=-1,
    save_best=None,
    save_weights_only=False,
    save_async=True,
    on_save_error="raise",
    grace="25s",
    seed=None,
    loggers=(),
    log_interval="1ba",
    root=Path("runs"),
    resume=False,
    auto_resume=False,
    overwrite=False,
    load_path=None,
    load_weights_only=False,
    precision="fp32",
    device=None,
)


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"run_name": ""}, RunNameError, "is empty"),
        ({"run_name": "../x"}, RunNameError, "'/'"),
        ({"run_name": "a\nb"}, RunNameError, "U+000A"),
        ({"profile": "quikc"}, RecipeError, "known are"),
        ({"max_duration": "5"}, ConfigError, "--max-duration"),
        ({"max_duration": "0.5dur"}, ConfigError, "--max-duration"),
        ({"eval_interval": "soon"}, ConfigError, "--eval-interval"),
        ({"save_interval": "0ep"}, ConfigError, "--save-interval"),
        ({"log_interval": ""}, ConfigError, "--log-interval"),
        ({"save_num_checkpoints_to_keep": 0}, ConfigError, "--keep=0"),
        ({"save_best": "loss"}, ConfigError, "save_best='loss'"),
        ({"save_best": "loss:low"}, ConfigError, "save_best=loss:low"),
        ({"save_best": "loss:min:0"}, ConfigError, "save_best=loss:min:0"),
        ({"grace": "2ep"}, ConfigError, "--grace"),
        ({"auto_resume": True, "overwrite": True}, ConfigError, "--auto-resume"),
        ({"loggers": ("none", "tensorboard")}, ConfigError, "--logger none"),
        ({"resume": True, "overwrite": True}, ConfigError, "--overwrite"),
        ({"load_weights_only": True}, ConfigError, "--load-path"),
        ({"load_path": ""}, ConfigError, "--load-path"),
    ],
)
def test_plain_slips_are_found_before_anything_is_made(
    tmp_path: Path, change: dict[str, Any], kind: type[ConfigError], text: str
) -> None:
    root = tmp_path / "runs"
    with pytest.raises(kind) as caught:
        launch(replace(REQUEST, root=root, **change))
    assert text in caught.value.message
    assert not root.exists()


def test_an_empty_name_in_the_environment_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_NAME", "")
    with pytest.raises(RunNameError, match="RUN_NAME"):
        launch(replace(REQUEST, root=tmp_path, run_name=None))
