"""The logger with the real client on a store in a folder, read back through the client."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.errors import ConfigError, MissingExtraError
from harness.loggers import make_logger
from harness.loggers.base import RunInfo
from harness.loggers.mlflow import MLflowLogger

MakeRun = Callable[..., RunInfo]
S = 1_000_000_000


@pytest.fixture(autouse=True)
def uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A store of files: it needs no more than the small client, which has to be told that it may."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return (tmp_path / "store").as_uri()


def found(uri: str, experiment: str = "Default") -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def history(uri: str, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    [run] = found(uri)
    kept = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, name)
    return sorted((metric.step, metric.value) for metric in kept)


def log(uri: str, run: RunInfo, *rows: tuple[int, dict[str, float]]) -> None:
    logger = MLflowLogger(uri)
    logger.open(run)
    for step, metrics in rows:
        logger.log_metrics(step, metrics, time_ns=(1000 + step) * S)
    logger.close()


def test_the_run_has_the_name_the_parameters_and_every_step(run_info: MakeRun, uri: str) -> None:
    logger = MLflowLogger(uri, experiment_name="digits", tags={"team": "small"})
    logger.open(run_info())
    logger.log_params({"lr": 0.1, "model.width": 8, "optimizer": "AdamW", **{f"p{i}": i for i in range(150)}})
    for step in (1, 2, 3):
        logger.log_metrics(step, {"loss": 1 / step}, time_ns=(1000 + step) * S)
    logger.log_system(2, {"cpu_pct": 50.0}, time_ns=1004 * S)
    logger.flush()
    [run] = found(uri, "digits")
    assert run.info.status == "RUNNING"
    assert run.data.metrics == {"loss": 1 / 3, "system/cpu_pct": 50.0}
    logger.close()
    [run] = found(uri, "digits")
    assert (run.info.run_name, run.info.status, run.data.tags["team"]) == ("foo", "FINISHED", "small")
    assert len(run.data.params) == 153
    assert {name: run.data.params[name] for name in ("lr", "model.width", "optimizer")} == {
        "lr": "0.1",
        "model.width": "8",
        "optimizer": "AdamW",
    }


def test_a_resumed_run_goes_on_in_the_same_one_without_double_points(run_info: MakeRun, uri: str) -> None:
    log(uri, run_info(), (1, {"loss": 3.0}), (2, {"loss": 2.0}), (3, {"loss": 1.0}))
    logger = MLflowLogger(uri)
    logger.open(run_info(attempt=2, resumed_step=2))
    assert found(uri)[0].info.status == "RUNNING"
    logger.log_params({"lr": 0.1})
    for step in (3, 4):
        logger.log_metrics(step, {"loss": 1.0 / step, "new": 1.0}, time_ns=2000 * S)
        logger.flush()
    logger.close()
    assert history(uri, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.25)]
    assert history(uri, "new") == [(3, 1.0), (4, 1.0)]


def test_a_parameter_that_changed_stays_and_breaks_nothing(run_info: MakeRun, uri: str) -> None:
    for attempt, duration in ((1, "2ep"), (2, "4ep")):
        logger = MLflowLogger(uri)
        logger.open(run_info(attempt=attempt))
        logger.log_params({"max_duration": duration, f"attempt{attempt}": "x"})
        logger.close()
    assert found(uri)[0].data.params == {"max_duration": "2ep", "attempt1": "x", "attempt2": "x"}


def test_another_run_of_the_name_is_another_run(run_info: MakeRun, uri: str) -> None:
    log(uri, run_info(), (1, {"loss": 3.0}))
    log(uri, run_info(started="2026-01-02T04:00:00.000Z"), (1, {"loss": 3.0}))
    log(uri, run_info(rank=1, world_size=2), (1, {"loss": 3.0}))  # writes nothing
    assert [run.info.run_name for run in found(uri)] == ["foo", "foo"]


def test_values_and_names_that_mlflow_refuses_are_changed_as_documented(run_info: MakeRun, uri: str) -> None:
    names = {"train/loss per token": 1.0, "Größe 損失": 2.0, "a(b)?": 3.0, "../x//y": 4.0, "n" * 256: 5.0}
    log(uri, run_info(), (1, names), (2, {"nan": math.nan, "inf": math.inf, "big": 2**70, "huge": -(10**400)}))
    metrics = found(uri)[0].data.metrics
    assert math.isnan(metrics.pop("nan"))
    assert metrics == {
        "train/loss per token": 1.0,
        "Größe 損失": 2.0,
        "a_b__": 3.0,
        "_/x/_/y": 4.0,
        "n" * 250: 5.0,
        "inf": math.inf,
        "big": float(2**70),
        "huge": -math.inf,
    }


def test_two_metrics_of_one_name_are_an_error_at_first_use(run_info: MakeRun, uri: str) -> None:
    logger = MLflowLogger(uri)
    logger.open(run_info())
    with pytest.raises(ConfigError, match="'a_b' in MLflow, which is that of the metric 'a\\?b'"):
        logger.log_metrics(1, {"a?b": 1.0, "a(b": 2.0}, time_ns=S)
    logger.close()


def test_what_is_not_taken_waits(run_info: MakeRun, uri: str, tmp_path: Path) -> None:
    logger = MLflowLogger(uri)
    logger.open(run_info())
    logger.log_metrics(1, {"loss": 1.0}, time_ns=S)
    (tmp_path / "store").rename(tmp_path / "away")
    with pytest.raises(Exception, match="(?i)not found|does not exist|no such"):
        logger.flush()
    (tmp_path / "away").rename(tmp_path / "store")
    logger.log_metrics(2, {"loss": 2.0}, time_ns=2 * S)
    logger.close()
    assert history(uri, "loss") == [(1, 1.0), (2, 2.0)]


def test_values_beyond_the_limit_are_counted(run_info: MakeRun, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.loggers.mlflow._MAX_PENDING", 2)
    log(uri, run_info())
    logger = MLflowLogger(uri)
    logger.open(run_info())
    for step in range(5):
        logger.log_metrics(step, {"loss": float(step)}, time_ns=S)
    [health] = logger.file_health()
    assert health.dropped_lines == 3


def test_a_session_is_there_whole(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with harness.session("foo", root=tmp_path / "runs", loggers=["mlflow"], config={"lr": 0.1}) as run:
        for batch in run.steps(list(range(40)), "1ep", get_num_samples=lambda batch: 1):
            run.log({"loss": float(batch)})
    assert history(uri, "loss") == [(step, float(step - 1)) for step in range(1, 41)]
    assert found(uri)[0].data.params == {"lr": "0.1"}


def test_its_makers_are_told_nothing(uri: str, tmp_path: Path) -> None:
    program = (
        "import sys; import harness\n"
        "sys.addaudithook(lambda event, asked: event == 'socket.getaddrinfo' and print(asked[0], flush=True))\n"
        "with harness.session('foo', root=sys.argv[1], loggers=['mlflow']) as run:\n"
        "    for batch in run.steps([1], '1ba', get_num_samples=lambda batch: 1): run.log({'loss': 1.0})\n"
    )
    hints = ("PYTEST_", "CI", "GITHUB_")  # by which it would see that this is a test
    environ = {name: value for name, value in os.environ.items() if not name.startswith(hints)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "runs")],
        env={**environ, "MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_without_a_uri_it_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="'mlflow' does not know where to") as caught:
        make_logger("mlflow")
    assert "MLFLOW_TRACKING_URI" in str(caught.value.hint)


def test_a_store_that_is_not_there_is_an_error_before_the_first_step(
    run_info: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"the logger 'mlflow' cannot start with http://127.0.0.1:9"):
        MLflowLogger("http://127.0.0.1:9").open(run_info())


def test_without_the_package_the_pip_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.loggers.service.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="'mlflow'") as caught:
        make_logger("mlflow")
    assert caught.value.hint == 'pip install "profiling-harness[mlflow]"'
