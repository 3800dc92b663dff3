"""The logger with the real client, offline: what it wrote is read back from the client's own file."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import wandb
from wandb.proto import wandb_internal_pb2

import harness
from harness.errors import ConfigError, MissingExtraError
from harness.loggers import make_logger
from harness.loggers.base import RunInfo
from harness.loggers.wandb import WandBLogger

MakeRun = Callable[..., RunInfo]
S = 1_000_000_000
FILE_HEAD, BLOCK, RECORD_HEAD = 7, 32_768, struct.Struct("<IHB")


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    wandb.teardown()


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: a LevelDB log, each record a protobuf."""
    data, position, record = path.read_bytes(), FILE_HEAD, b""
    assert data.startswith(b":W&B")
    while position + RECORD_HEAD.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < RECORD_HEAD.size:
            position += left
            continue
        _, size, kind = RECORD_HEAD.unpack_from(data, position)
        position += RECORD_HEAD.size
        record += data[position : position + size]
        position += size
        if kind in (1, 4):  # the whole record, or its last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


class Written:
    """One attempt's file."""

    def __init__(self, path: Path) -> None:
        found = list(records(path))
        self.run = next(record.run for record in found if record.HasField("run"))
        self.history = [
            {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for record in found
            if record.HasField("history")
        ]
        updates = [record.config.update for record in found if record.HasField("config")]
        self.config = {item.key: json.loads(item.value_json) for update in updates for item in update}

    def steps(self, name: str) -> dict[int, Any]:
        return {row["_step"]: row[name] for row in self.history if name in row}


def written(directory: Path) -> list[Written]:
    """The attempts of a run, in order."""
    paths = sorted(directory.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [Written(path) for path in paths]


def log(run: RunInfo, *rows: tuple[int, dict[str, float]], logger: WandBLogger | None = None) -> None:
    logger = logger or WandBLogger()
    logger.open(run)
    for step, metrics in rows:
        logger.log_metrics(step, metrics, time_ns=(1000 + step) * S)
    logger.close()


def client_processes(parent: int) -> list[psutil.Process]:
    return [
        child for child in psutil.Process(parent).children(recursive=True) if "wandb-core" in " ".join(child.cmdline())
    ]


def test_the_run_has_the_name_the_config_and_every_step(run_info: MakeRun) -> None:
    run = run_info()
    logger = WandBLogger(project="digits", tags=["small"])
    logger.open(run)
    logger.log_params({"lr": 0.1, "model.width": 8, "optimizer": "AdamW", "big": 2**70, "fused": True})
    for step in (1, 2, 3):
        logger.log_metrics(step, {"loss": 1 / step, "num": step}, time_ns=(1000 + step) * S)
    logger.flush()
    logger.close()

    [attempt] = written(run.directory)
    assert (attempt.run.display_name, attempt.run.project, list(attempt.run.tags)) == ("foo", "digits", ["small"])
    assert attempt.run.run_group == ""
    assert attempt.config | {"_wandb": None} == {
        "lr": 0.1,
        "model.width": 8,
        "optimizer": "AdamW",
        "big": float(2**70),
        "fused": True,
        "_wandb": None,
    }
    assert attempt.steps("loss") == {1: 1.0, 2: 0.5, 3: 1 / 3}
    assert attempt.steps("num") == {1: 1, 2: 2, 3: 3}
    assert attempt.steps("_timestamp") == {1: 1001.0, 2: 1002.0, 3: 1003.0}


def test_a_resumed_run_goes_on_in_the_same_wandb_run(run_info: MakeRun) -> None:
    log(run_info(), (1, {"loss": 3.0}), (2, {"loss": 2.0}))
    log(run_info(attempt=2, resumed_step=2), (3, {"loss": 1.0}))
    first, second = written(run_info().directory)
    assert first.run.run_id == second.run.run_id
    assert first.run.display_name == second.run.display_name == "foo"
    assert second.run.resume
    assert (first.steps("loss"), second.steps("loss")) == ({1: 3.0, 2: 2.0}, {3: 1.0})


def test_another_run_has_another_id(run_info: MakeRun, tmp_path: Path) -> None:
    log(run_info(), (1, {"loss": 3.0}))
    log(run_info(started="2026-01-02T04:00:00.000Z"), (1, {"loss": 3.0}))  # took the place of the first
    log(run_info(run_name="bar"), (1, {"loss": 3.0}))
    log(run_info(root=tmp_path / "elsewhere"), (1, {"loss": 3.0}))
    assert len({attempt.run.run_id for attempt in written(run_info().directory)}) == 4


def test_several_ranks_are_a_group_if_all_of_them_log(run_info: MakeRun) -> None:
    log(run_info(rank=1, world_size=2), (1, {"loss": 3.0}))
    assert written(run_info().directory) == []
    for rank in (0, 1):
        log(run_info(rank=rank, world_size=2), (1, {"loss": 3.0}), logger=WandBLogger(rank_zero_only=False))
    attempts = written(run_info().directory)
    assert [(attempt.run.display_name, attempt.run.run_group) for attempt in attempts] == [
        ("foo", "foo"),
        ("foo-rank1", "foo"),
    ]
    assert attempts[0].run.run_id != attempts[1].run.run_id


def test_values_and_names_that_wandb_cannot_hold_are_changed_as_documented(run_info: MakeRun) -> None:
    run = run_info()
    log(
        run,
        (
            1,
            {
                "nan": math.nan,
                "inf": math.inf,
                "minus": -math.inf,
                "big": 2**70,
                "huge": -(10**400),
                "int64": 2**63 - 1,
            },
        ),
        (2, {"train/loss per token": 1.0, "Größe 損失": 2.0, "a.b": 3.0, "_step": 4.0, "_timestamp": 5.0}),
    )
    [attempt] = written(run.directory)
    first, second = attempt.history
    assert math.isnan(first["nan"])
    assert (first["inf"], first["minus"], first["huge"]) == (math.inf, -math.inf, -math.inf)
    assert (first["big"], first["int64"]) == (float(2**70), 2**63 - 1)
    assert {name: second[name] for name in second if not name.startswith("_")} == {
        "train/loss per token": 1.0,
        "Größe 損失": 2.0,
        "a.b": 3.0,
        "metrics/_step": 4.0,
        "metrics/_timestamp": 5.0,
    }
    assert (second["_step"], second["_timestamp"]) == (2, 1002.0)


def test_two_metrics_of_one_name_are_an_error_at_first_use(run_info: MakeRun) -> None:
    run = run_info()
    logger = WandBLogger()
    logger.open(run)
    logger.log_metrics(1, {"metrics/_loss": 1.0}, time_ns=S)
    with pytest.raises(ConfigError, match=r"'_loss' has the name 'metrics/_loss' in W&B"):
        logger.log_metrics(2, {"_loss": 2.0}, time_ns=2 * S)
    logger.log_metrics(3, {"metrics/_loss": 3.0, "_loss": 4.0}, time_ns=3 * S)
    logger.log_system(3, {"rss_bytes": 5.0}, time_ns=3 * S)
    with pytest.raises(ConfigError, match="that of the system sample 'rss_bytes'"):
        logger.log_metrics(4, {"system/rss_bytes": 6.0}, time_ns=4 * S)
    logger.close()
    [attempt] = written(run.directory)
    assert attempt.steps("metrics/_loss") == {1: 1.0, 3: 3.0}
    assert attempt.steps("system/rss_bytes") == {3: 5.0}


def test_a_late_system_sample_loses_nothing(run_info: MakeRun, capfd: pytest.CaptureFixture[str]) -> None:
    run = run_info()
    logger = WandBLogger(mode="offline")
    logger.open(run)
    logger.log_system(0, {"cpu_pct": 10.0}, time_ns=S)
    logger.log_metrics(7, {"loss": 1.0}, time_ns=2 * S)
    logger.log_system(6, {"cpu_pct": 50.0}, time_ns=3 * S)
    logger.close()
    [attempt] = written(run.directory)
    assert attempt.steps("system/cpu_pct") == {0: 10.0, 7: 50.0}
    assert attempt.steps("loss") == {7: 1.0}
    assert capfd.readouterr().err == ""


def test_without_a_login_it_is_offline_and_says_so(run_info: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="harness"):
        log(run_info(), (1, {"loss": 1.0}))
    assert [record.message for record in caplog.records if "nobody is logged in" in record.message]
    assert len(written(run_info().directory)) == 1


@pytest.mark.parametrize("word", ["offline", "disabled"])
def test_the_environment_decides_the_mode(
    run_info: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, word: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", word)
    wandb.teardown()
    with caplog.at_level("INFO", logger="harness"):
        log(run_info(), (1, {"loss": 1.0}))
    assert len(written(run_info().directory)) == (word == "offline")
    assert [record for record in caplog.records if record.name.startswith("harness")] == []


def test_a_server_that_is_not_there_is_an_error_before_the_first_step(
    run_info: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("harness.loggers.wandb._SETTINGS", {"silent": True, "init_timeout": 0.5})
    wandb.teardown()
    with pytest.raises(ConfigError, match="the logger 'wandb' cannot start") as caught:
        WandBLogger().open(run_info())
    assert "WANDB_MODE=offline" in str(caught.value.hint)
    assert "0" * 40 not in str(caught.value)


def test_a_wrong_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="mode='onlin' .* online, offline, disabled"):
        WandBLogger(mode="onlin")  # type: ignore[arg-type]


def test_offline_it_asks_nobody(tmp_path: Path) -> None:
    program = (
        "import sys; import harness\n"
        "sys.addaudithook(lambda event, asked: event == 'socket.getaddrinfo' and print(asked[0], flush=True))\n"
        "with harness.session('foo', root=sys.argv[1], loggers=['wandb']) as run:\n"
        "    for batch in run.steps([1], '1ba', get_num_samples=lambda batch: 1): run.log({'loss': 1.0})\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_without_the_package_the_pip_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.loggers.service.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="'wandb'") as caught:
        make_logger("wandb")
    assert caught.value.hint == 'pip install "profiling-harness[wandb]"'


def test_naming_the_logger_imports_no_client() -> None:
    program = "import sys; from harness.loggers import make_logger; make_logger('wandb'); print('wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_a_wandb_run_of_the_users_own_is_left_alone(
    run_info: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")  # else its end waits for a server, now and then
    with wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(silent=True, console="off")) as own:
        log(run_info(), (1, {"loss": 1.0}))
        assert wandb.run is own
        own.log({"mine": 2.0}, step=5)
    assert capfd.readouterr().err == ""
    wandb.teardown()  # only then is the file whole for sure
    [theirs] = written(tmp_path)
    assert (theirs.steps("mine"), theirs.steps("loss")) == ({5: 2.0}, {})


def test_close_leaves_no_process_behind(run_info: MakeRun) -> None:
    logger = WandBLogger()
    logger.open(run_info())
    assert len(client_processes(os.getpid())) == 1
    logger.close()
    assert client_processes(os.getpid()) == []


def test_a_session_that_is_resumed_has_the_same_id_and_one_that_is_overwritten_another(tmp_path: Path) -> None:
    ids = []
    for options in ({}, {"resume": True}, {"overwrite": True}):
        model = torch.nn.Linear(1, 1)
        with harness.session(
            "foo", root=tmp_path, loggers=["wandb"], state={"model": model}, save_interval="1ep", **options
        ) as run:
            for _ in run.steps([torch.ones(1, 1)] * 3, f"{len(ids) + 1}ep"):
                run.log({"loss": 1.0})
        attempt = written(tmp_path / "foo")[-1]
        ids.append(attempt.run.run_id)
        expected = [4, 5, 6] if "resume" in options else list(range(1, len(ids) * 3 + 1))
        assert sorted(attempt.steps("loss")) == expected
    assert ids[0] == ids[1] != ids[2]


SESSION = """
import os, signal, sys, time
import torch
from torch.utils.data import DataLoader, TensorDataset
import harness

if __name__ == "__main__":
    root, how = sys.argv[1:]
    loader = DataLoader(TensorDataset(torch.arange(40.0)), batch_size=4, num_workers=2, multiprocessing_context="fork")
    with harness.session("foo", root=root, loggers=["wandb"]) as run:
        for [batch] in run.steps(loader, max_duration="2ep"):
            run.log({"loss": batch.mean()})
            if how == "kill" and run.step == 15:
                print("here", flush=True)
                time.sleep(60)
"""


def test_forked_dataloader_workers_do_not_break_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SESSION)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), "end"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    [attempt] = written(tmp_path / "foo")
    assert attempt.run.display_name == "foo"
    assert sorted(attempt.steps("loss")) == list(range(1, 21))
    health = json.loads((tmp_path / "foo" / "run.json").read_bytes())["health"]["loggers"]["wandb"]
    assert (health["errors"], health["dropped_records"], health["hung"]) == (0, 0, False)


def test_after_kill_9_no_process_is_left(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SESSION)
    with subprocess.Popen(
        [sys.executable, str(program), str(tmp_path), "kill"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        [client] = client_processes(process.pid)
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while client.is_running() and client.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "wandb-core is still there"
        time.sleep(0.1)


def test_ctrl_c_ends_the_run_with_everything_in_wandb(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SESSION.replace("time.sleep(60)", "time.sleep(1)"))
    process = subprocess.Popen(
        [sys.executable, str(program), str(tmp_path), "kill"], stdout=subprocess.PIPE, start_new_session=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the client's process too
    assert process.returncode == -signal.SIGINT
    [attempt] = written(tmp_path / "foo")
    assert sorted(attempt.steps("loss")) == list(range(1, 16))
