"""A disk that is really full while a run trains: a tmpfs of a few megabytes, in a mount namespace of the test's own.

The nursery runs inside that namespace, and so does what looks at the run afterwards: nobody else sees the disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from evidence import Evidence, complaints_after_kill, complaints_at_end
from nursery import Ended, Nursery
from small_disk import on_small_disk

DURATION = "16ba"
RECIPE = "[schedule]\nskip_first = 4\nwait = 0\nwarmup = 1\nactive = 2\nrepeat = 1\n"
"""Steps 6 and 7 are recorded."""
TrainWhole = Callable[[str], Evidence]


class SmallDisk:
    """A disk of its own, and the processes on it. Trains one run, `foo`."""

    def __init__(self, nursery: Nursery, path: Path) -> None:
        self.path = path
        self._nursery = nursery

    def train(self, **options: Any) -> Ended:
        """Train, or go on."""
        return self._nursery.run("train", self.path, **{"max_duration": DURATION, "resume": "auto", **options})

    def look(self) -> Evidence:
        """What the run left."""
        ended = self._nursery.run("tell_what_is_there", self.path)
        assert ended.code == 0, ended.stderr
        return Evidence.from_dict(json.loads(ended.stdout))

    def tensorboard(self) -> list[int]:
        """The steps of which TensorBoard shows the loss."""
        ended = self._nursery.run("tell_tensorboard", self.path)
        assert ended.code == 0, ended.stderr
        steps: list[int] = json.loads(ended.stdout)
        return steps

    def remove(self, name: str = "") -> None:
        """Remove a file, or all that there is."""
        assert self._nursery.run("remove", self.path / name).code == 0

    def remount(self, how: str) -> None:
        """Change the mount, such as to `ro`."""
        assert self._nursery.run("remount", self.path, how).code == 0


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    disk, elsewhere = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("elsewhere")
    # TMPDIR is another file system: no file may be renamed from there
    with Nursery(elsewhere, within=on_small_disk(disk, "6m"), TMPDIR=str(elsewhere)) as nursery:
        yield SmallDisk(nursery, disk)


@pytest.fixture
def small_disk(mounted: SmallDisk) -> Iterator[SmallDisk]:
    yield mounted
    mounted.remount("rw")
    mounted.remove()


@pytest.mark.parametrize("save_async", [True, False], ids=["async", "sync"])
def test_a_disk_that_fills_up_before_a_save_fails_the_run_and_keeps_the_checkpoint_before(
    save_async: bool, small_disk: SmallDisk, train_whole: TrainWhole
) -> None:
    full = {"full_after": 10, "free_after": None, "pause_s": 0.3}
    ended = small_disk.train(save_async=save_async, fill_disk=full)
    assert ended.code == 3, ended.stderr
    assert "error: ep0-ba12-rank0.pt could not be saved" in ended.stderr
    assert "are free" in ended.stderr
    assert "hint: free some space" in ended.stderr
    assert "Traceback" not in ended.stderr
    evidence = small_disk.look()
    assert complaints_after_kill(evidence) == []
    assert evidence.temporary == []
    assert (evidence.found, evidence.num_good) == (8, 2)
    assert evidence.status in ("failed", "crashed")  # there may be no room left to write down which

    small_disk.remove("filler")
    ended = small_disk.train()
    assert ended.code == 0, ended.stderr
    assert complaints_at_end(small_disk.look(), train_whole(DURATION)) == []


def test_a_run_that_shall_only_warn_trains_on_without_the_checkpoints_that_did_not_fit(
    small_disk: SmallDisk, train_whole: TrainWhole
) -> None:
    full = {"full_after": 6, "free_after": 14, "pause_s": 0.3}
    ended = small_disk.train(on_save_error="warn", fill_disk=full)
    assert ended.code == 0, ended.stderr
    evidence = small_disk.look()
    for said in (ended.stderr, evidence.log):
        assert "the checkpoint of step 8 was not saved" in said
        assert "No space left on device" in said
    assert complaints_at_end(evidence, train_whole(DURATION)) == []


def test_a_disk_that_is_full_for_a_while_costs_no_line_of_any_log(
    small_disk: SmallDisk, train_whole: TrainWhole
) -> None:
    # long enough for the lines to need another page
    full = {"full_after": 3, "free_after": 52, "pause_s": 1.0}
    ended = small_disk.train(max_duration="60ba", save_interval="60ba", loggers=["tensorboard"], fill_disk=full)
    assert ended.code == 0, ended.stderr
    evidence = small_disk.look()
    assert complaints_at_end(evidence, train_whole("60ba")) == []
    assert evidence.refused_writes > 0
    assert small_disk.tensorboard() == evidence.steps


def test_a_disk_that_stays_full_ends_the_run_with_what_the_disk_said(small_disk: SmallDisk) -> None:
    full = {"full_after": 3, "free_after": None, "pause_s": 1.0}
    ended = small_disk.train(save_interval=None, fill_disk=full)
    assert ended.code == 3, ended.stderr
    assert "No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr
    evidence = small_disk.look()
    assert complaints_after_kill(evidence) == []
    assert evidence.temporary == []


@pytest.mark.parametrize(
    ("spare_bytes", "told"),
    [(0, "No space left on device"), (64 << 10, "torch.profiler wrote no trace")],
    ids=["full", "nearly_full"],
)
def test_a_disk_that_fills_up_while_a_trace_is_recorded_costs_the_trace_alone(
    spare_bytes: int, told: str, small_disk: SmallDisk, tmp_path: Path, train_whole: TrainWhole
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    full = {"full_after": 6, "free_after": 14, "spare_bytes": spare_bytes}
    ended = small_disk.train(profile=str(recipe), save_interval="16ba", fill_disk=full)
    assert ended.code == 0, ended.stderr
    assert "capture of steps 6 to 7 failed" in ended.stderr
    assert told in ended.stderr
    evidence = small_disk.look()
    assert complaints_at_end(evidence, train_whole(DURATION)) == []
    assert evidence.traces == []


def test_a_disk_that_is_read_only_is_refused_before_anything_is_trained(
    small_disk: SmallDisk, train_whole: TrainWhole
) -> None:
    small_disk.train(max_duration="8ba")
    small_disk.remount("ro")
    for overwrite in (False, True):
        ended = small_disk.train(resume=not overwrite, overwrite=overwrite)
        assert ended.code == 2, ended.stderr
        assert "read-only" in ended.stderr.lower()
    small_disk.remount("rw")
    assert small_disk.train().code == 0
    assert complaints_at_end(small_disk.look(), train_whole(DURATION)) == []
