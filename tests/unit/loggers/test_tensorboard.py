from __future__ import annotations

import logging
import math
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader, RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import metadata

from harness.errors import RunDirError
from harness.loggers import event_file
from harness.loggers.base import RunInfo
from harness.loggers.event_file import EventFile
from harness.loggers.event_wire import ScalarLayout, frame
from harness.loggers.tensorboard import TensorBoardLogger

MakeRun = Callable[..., RunInfo]
S = 1_000_000_000


def open_logger(run: RunInfo) -> TensorBoardLogger:
    logger = TensorBoardLogger()
    logger.open(run)
    return logger


def event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


def raw_events(path: Path) -> list[Event]:
    return [Event.FromString(event) for event in RawEventFileLoader(str(path)).Load()]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_the_file_is_named_as_tensorboard_names_its_own(run_info: MakeRun) -> None:
    run = run_info()
    open_logger(run).close()
    [path] = event_files(run.directory)
    assert re.fullmatch(r"events\.out\.tfevents\.\d{10}\..+\.\d+\.\d+", path.name)
    assert raw_events(path)[0].file_version == "brain.Event:2"


def test_one_event_holds_all_values_of_a_step(run_info: MakeRun) -> None:
    run = run_info()
    logger = open_logger(run)
    logger.log_metrics(3, {"loss": 0.5, "acc": 1, "bad": math.nan}, time_ns=5 * S // 2)
    logger.log_metrics(4, {"loss": 0.25}, time_ns=3 * S)
    logger.close()
    [path] = event_files(run.directory)
    third, fourth = [event for event in raw_events(path) if event.HasField("summary")]
    assert (third.step, third.wall_time) == (3, 2.5)
    assert [value.tag for value in third.summary.value] == ["loss", "acc", "bad"]
    assert [value.simple_value for value in third.summary.value][:2] == [0.5, 1.0]
    assert (fourth.step, fourth.summary.value[0].simple_value) == (4, 0.25)


def test_tensorboard_reads_scalars_and_system_metrics_back(run_info: MakeRun) -> None:
    run = run_info()
    logger = open_logger(run)
    for step in range(1, 1001):
        logger.log_metrics(step, {"loss": step / 4}, time_ns=step * S)
    logger.log_system(1000, {"cpu_pct": 12.5}, time_ns=S)
    logger.close()
    assert scalars(run.directory, "loss") == [(step, step / 4) for step in range(1, 1001)]
    assert scalars(run.directory, "system/cpu_pct") == [(1000, 12.5)]


def test_what_was_flushed_can_be_read_while_the_run_goes_on(run_info: MakeRun) -> None:
    run = run_info()
    logger = open_logger(run)
    logger.log_metrics(1, {"loss": 0.5}, time_ns=S)
    logger.flush()
    assert scalars(run.directory, "loss") == [(1, 0.5)]
    logger.close()


@pytest.mark.parametrize("accumulator", ["event_accumulator", "plugin_event_accumulator"])
def test_a_resumed_run_replaces_the_steps_done_again(
    run_info: MakeRun, accumulator: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_logger(run_info())
    for step in range(1, 11):
        first.log_metrics(step, {"loss": 1.0, "only before": 1.0}, time_ns=step * S)
    first.close()
    second = open_logger(run_info(attempt=2, resumed_step=6))
    for step in range(7, 9):
        second.log_metrics(step, {"loss": 2.0}, time_ns=step * S)
    second.close()
    directory = str(run_info().directory)
    with caplog.at_level(logging.ERROR):  # the reader tells of what it drops
        if accumulator == "event_accumulator":
            reader = event_accumulator.EventAccumulator(directory)
            reader.Reload()
            steps = {tag: [event.step for event in reader.Scalars(tag)] for tag in ("loss", "only before")}
        else:
            plugin = plugin_event_accumulator.EventAccumulator(directory)
            plugin.Reload()
            steps = {tag: [event.step for event in plugin.Tensors(tag)] for tag in ("loss", "only before")}
    assert steps == {"loss": [1, 2, 3, 4, 5, 6, 7, 8], "only before": [1, 2, 3, 4, 5, 6]}


def test_a_later_file_sorts_after_the_earlier_ones_even_when_the_clock_was_set_back(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.2000000000.host.1.1").write_bytes(b"")
    files = [EventFile(tmp_path) for _ in range(3)]
    names = [file.path.name for file in files]
    assert sorted([*names, "events.out.tfevents.2000000000.host.1.1"])[1:] == names
    for file in files:
        file.close()


def test_parameters_are_shown_in_the_hparams_and_text_tabs(run_info: MakeRun) -> None:
    run = run_info()
    logger = open_logger(run)
    logger.log_params({"lr": 0.1, "note": "a|b\nc"})
    logger.close()
    reader = plugin_event_accumulator.EventAccumulator(str(run.directory))
    reader.Reload()
    content = reader.PluginTagToContent(metadata.PLUGIN_NAME)[metadata.SESSION_START_INFO_TAG]
    assert metadata.parse_session_start_info_plugin_data(content).hparams["lr"].number_value == 0.1
    [text] = reader.Tensors("params/text_summary")
    assert text.tensor_proto.string_val == [b"|name|value|\n|---|---|\n|lr|0.1|\n|note|a\\|b c|"]


def test_only_rank_0_writes(run_info: MakeRun) -> None:
    run = run_info(rank=1, world_size=2)
    logger = open_logger(run)
    logger.log_metrics(1, {"loss": 1.0}, time_ns=S)
    logger.log_params({"lr": 1})
    logger.flush()
    logger.close()
    assert event_files(run.directory) == []


def test_a_folder_that_cannot_be_made_is_found_at_open(run_info: MakeRun, tmp_path: Path) -> None:
    run = run_info(path=lambda _: tmp_path / "link")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunDirError):
        open_logger(run)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """The system refuses what makes a file larger, as a full disk would: with a short write first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit_bytes", [0, 1, 11, 12, 90, 170, 171, 1000])
def test_a_full_disk_delays_records_and_tears_none(run_info: MakeRun, limit_bytes: int) -> None:
    run = run_info()
    logger = open_logger(run)
    [path] = event_files(run.directory)
    with largest_file(path.stat().st_size + limit_bytes):
        for step in range(1, 51):
            logger.log_metrics(step, {"loss": step / 4}, time_ns=step * S)
            logger.flush()
        [health] = logger.file_health()
        assert health.errors > 0
        assert health.last_error is not None
        assert "too large" in health.last_error
        partial = [event for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]
        assert len(partial) < 50
    for step in range(51, 61):
        logger.log_metrics(step, {"loss": step / 4}, time_ns=step * S)
    logger.close()
    assert scalars(run.directory, "loss") == [(step, step / 4) for step in range(1, 61)]
    assert logger.file_health()[0].dropped_lines == 0


@pytest.mark.parametrize("limit_bytes", [0, 100, 333])
def test_a_disk_that_stays_full_costs_the_oldest_whole_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_bytes: int
) -> None:
    monkeypatch.setattr(event_file, "MAX_PENDING_BYTES", 2000)
    file = EventFile(tmp_path)
    layout = ScalarLayout(["loss"])
    with largest_file(limit_bytes):
        for step in range(1, 201):
            file.write(frame(layout.event(float(step), step, [step / 4])))
    assert file.health.dropped_lines > 100
    file.close()
    kept = [event.step for event in raw_events(file.path)]
    assert kept[-1] == 200
    assert len(kept) + file.health.dropped_lines == 200
    assert kept[-20:] == list(range(181, 201))


def test_what_still_waits_at_close_is_counted_as_dropped(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    records = [frame(ScalarLayout(["loss"]).event(1.0, step, [0.5])) for step in range(1, 11)]
    with largest_file(len(records[0]) + 5):
        file.write(b"".join(records))
        file.close()
    assert file.health.dropped_lines == 9
    file.write(records[0])
    file.close()
    assert [event.step for event in raw_events(file.path)] == [1]
