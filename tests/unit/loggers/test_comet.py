"""The logger with the real client, offline: what it wrote is read back from the client's own archive."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError, MissingExtraError
from harness.loggers import make_logger
from harness.loggers.base import RunInfo
from harness.loggers.comet import CometMLLogger

MakeRun = Callable[..., RunInfo]
S = 1_000_000_000


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("COMET_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the client puts its own in front


class Written:
    """One attempt's archive."""

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            self.facts = json.loads(archive.read("experiment.json"))
            messages = [json.loads(line) for line in archive.read("messages.json").splitlines()]
        self.key = self.facts["offline_id"]
        payloads = [(message["type"], message["payload"]) for message in messages]
        self.metrics = [payload["metric"] for kind, payload in payloads if kind == "metric_msg"]
        self.params = {
            payload["param"]["paramName"]: payload["param"]["paramValue"]
            for kind, payload in payloads
            if kind == "parameter_msg" and payload["param"]["source"] == "manual"
        }
        self.others = {payload["key"]: payload["value"] for kind, payload in payloads if kind == "log_other"}

    def steps(self, name: str) -> dict[int, Any]:
        return {metric["step"]: metric["metricValue"] for metric in self.metrics if metric["metricName"] == name}


def written(directory: Path) -> list[Written]:
    """The attempts of a run, in order."""
    return sorted(map(Written, directory.glob("comet/*.zip")), key=lambda one: one.facts["start_time"])


def log(run: RunInfo, *rows: tuple[int, dict[str, float]]) -> None:
    logger = CometMLLogger()
    logger.open(run)
    for step, metrics in rows:
        logger.log_metrics(step, metrics, time_ns=step * S)
    logger.close()


def test_the_experiment_has_the_name_the_parameters_and_every_step(run_info: MakeRun) -> None:
    run = run_info()
    logger = CometMLLogger("digits", workspace="team", tags=["small"])
    logger.open(run)
    logger.log_params({"lr": 0.1, "model.width": 8, "optimizer": "AdamW", "big": 2**70, "fused": True})
    for step in (1, 2, 3):
        logger.log_metrics(step, {"loss": 1 / step, "num": step}, time_ns=step * S)
    logger.log_system(2, {"cpu_pct": 50.0}, time_ns=4 * S)
    logger.flush()
    logger.close()

    [attempt] = written(run.directory)
    assert attempt.others["Name"] == "foo"
    assert (attempt.facts["project_name"], attempt.facts["workspace"]) == ("digits", "team")
    assert attempt.facts["tags"] == ["small"]
    assert attempt.params == {
        "lr": 0.1,
        "model.width": 8,
        "optimizer": "AdamW",
        "big": float(2**70),
        "fused": True,
    }
    assert attempt.steps("loss") == {1: 1.0, 2: 0.5, 3: 1 / 3}
    assert attempt.steps("num") == {1: 1, 2: 2, 3: 3}
    assert attempt.steps("system/cpu_pct") == {2: 50.0}


def test_a_resumed_run_goes_on_in_the_same_experiment(run_info: MakeRun) -> None:
    log(run_info(), (1, {"loss": 3.0}), (2, {"loss": 2.0}))
    log(run_info(attempt=2, resumed_step=2), (3, {"loss": 1.0}))
    first, second = written(run_info().directory)
    assert first.key == second.key
    assert {first.facts["resume_strategy"], second.facts["resume_strategy"]} == {"get_or_create"}
    assert (first.steps("loss"), second.steps("loss")) == ({1: 3.0, 2: 2.0}, {3: 1.0})


def test_another_run_and_another_rank_have_another_key(run_info: MakeRun) -> None:
    log(run_info(), (1, {"loss": 3.0}))
    log(run_info(started="2026-01-02T04:00:00.000Z"), (1, {"loss": 3.0}))
    log(run_info(rank=1, world_size=2), (1, {"loss": 3.0}))  # writes nothing
    logger = CometMLLogger(rank_zero_only=False)
    logger.open(run_info(rank=1, world_size=2))
    logger.close()
    attempts = written(run_info().directory)
    assert len({attempt.key for attempt in attempts}) == len(attempts) == 3
    assert attempts[-1].others["Name"] == "foo-rank1"


def test_values_and_names_that_comet_cannot_hold_are_changed_as_documented(run_info: MakeRun) -> None:
    run = run_info()
    log(
        run,
        (1, {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "big": 2**70, "huge": -(10**400)}),
        (2, {"train/loss per token": 1.0, "Größe 損失": 2.0, "a.b": 3.0, "n" * 120: 4.0}),
    )
    [attempt] = written(run.directory)
    assert (attempt.steps("nan"), attempt.steps("inf"), attempt.steps("minus")) == (
        {1: "NaN"},
        {1: "Infinity"},
        {1: "-Infinity"},
    )
    assert (attempt.steps("big"), attempt.steps("huge")) == ({1: float(2**70)}, {1: "-Infinity"})
    for name, value in {"train/loss per token": 1.0, "Größe 損失": 2.0, "a.b": 3.0, "n" * 100: 4.0}.items():
        assert attempt.steps(name) == {2: value}


def test_two_metrics_of_one_name_are_an_error_at_first_use(run_info: MakeRun) -> None:
    run = run_info()
    logger = CometMLLogger()
    logger.open(run)
    logger.log_metrics(1, {"n" * 101: 1.0}, time_ns=S)
    with pytest.raises(ConfigError, match="in Comet, which is that of the metric"):
        logger.log_metrics(2, {"n" * 102: 2.0}, time_ns=2 * S)
    logger.log_metrics(3, {"n" * 101: 3.0, "n" * 102: 4.0}, time_ns=3 * S)
    logger.close()
    [attempt] = written(run.directory)
    assert attempt.steps("n" * 100) == {1: 1.0, 3: 3.0}


def test_without_a_key_it_is_offline_and_says_so(run_info: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="harness"):
        log(run_info(), (1, {"loss": 1.0}))
    assert [record.message for record in caplog.records if "no API key" in record.message]
    assert len(written(run_info().directory)) == 1


def test_the_environment_decides_whether_it_is_online(
    run_info: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("COMET_API_KEY", "k" * 25)
    monkeypatch.setenv("COMET_START_ONLINE", "0")
    with caplog.at_level("INFO", logger="harness"):
        log(run_info(), (1, {"loss": 1.0}))
    assert len(written(run_info().directory)) == 1
    assert [record for record in caplog.records if record.name.startswith("harness")] == []


@pytest.mark.slow  # the client tries for 20 s
def test_a_server_that_is_not_there_is_an_error_before_the_first_step(
    run_info: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMET_API_KEY", "k" * 25)
    monkeypatch.setenv("COMET_URL_OVERRIDE", "http://127.0.0.1:9/clientlib/")
    with pytest.raises(ConfigError, match="the logger 'comet' cannot start") as caught:
        CometMLLogger().open(run_info())
    assert "COMET_START_ONLINE=0" in str(caught.value.hint)
    assert "k" * 25 not in str(caught.value)


def test_an_experiment_of_the_users_own_is_not_ended(run_info: MakeRun, tmp_path: Path) -> None:
    import comet_ml

    own = comet_ml.OfflineExperiment(offline_directory=str(tmp_path), log_env_details=False, auto_output_logging=False)
    try:
        with pytest.raises(ConfigError, match="has a Comet experiment already"):
            CometMLLogger().open(run_info())
        assert own.alive
    finally:
        own.end()


def test_offline_it_asks_nobody(tmp_path: Path) -> None:
    program = (
        "import sys; import harness\n"
        "sys.addaudithook(lambda event, asked: event == 'socket.getaddrinfo' and print(asked[0], flush=True))\n"
        "with harness.session('foo', root=sys.argv[1], loggers=['comet']) as run:\n"
        "    for batch in run.steps([1], '1ba', get_num_samples=lambda batch: 1): run.log({'loss': 1.0})\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_without_the_package_the_pip_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.loggers.service.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="'comet_ml'") as caught:
        make_logger("comet")
    assert caught.value.hint == 'pip install "profiling-harness[comet]"'


SESSION = """
import os, sys, threading
import torch
from torch.utils.data import DataLoader, TensorDataset
import harness

if __name__ == "__main__":
    before = torch.Tensor.backward, dict(os.environ)
    loader = DataLoader(TensorDataset(torch.arange(40.0)), batch_size=4, num_workers=2, multiprocessing_context="fork")
    with harness.session("foo", root=sys.argv[1], loggers=["comet"]) as run:
        for [batch] in run.steps(loader, max_duration="2ep"):
            run.log({"loss": batch.mean()})
        assert before == (torch.Tensor.backward, dict(os.environ))
    assert [thread.name for thread in threading.enumerate() if "treamer" in thread.name] == []
"""


def test_a_session_with_forked_workers_is_there_whole_and_nothing_is_replaced(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SESSION)
    done = subprocess.run([sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "import comet_ml" not in done.stderr  # that it comes after torch is no fault here
    [attempt] = written(tmp_path / "foo")
    assert attempt.others["Name"] == "foo"
    assert sorted(attempt.steps("loss")) == list(range(1, 21))
    health = json.loads((tmp_path / "foo" / "run.json").read_bytes())["health"]["loggers"]["comet"]
    assert (health["errors"], health["dropped_records"], health["hung"]) == (0, 0, False)
