"""Going on with a run: its newest checkpoint that is whole, and the order in which it is put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.checkpoint.find import SkippedCheckpoint, load_checkpoint, newest_verified
from harness.checkpoint.mend import mend_latest, set_aside
from harness.checkpoint.paths import CheckpointFolder, CheckpointPaths
from harness.checkpoint.position import EpochPosition
from harness.checkpoint.rng import restore_rng
from harness.checkpoint.state import WEIGHTS_ONLY, restore
from harness.errors import CheckpointError
from harness.loop.options import SessionOptions
from harness.loop.timestamp import Timestamp
from harness.run.directory import RunDirectory

_SHOWN = 3
"""Damaged checkpoints that an error names."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """A loaded checkpoint."""

    content: Mapping[str, Any]
    """As `harness.checkpoint.state` lays it out."""
    position: EpochPosition
    """Where in its epoch it was taken."""

    @property
    def step(self) -> int:
        """The step it was saved after."""
        return int(self.content["timestamp"]["batch"])

    def restore(self, state: Mapping[str, Any], timestamp: Timestamp) -> None:
        """Put objects and counts back. The random numbers come last, when the dataloader stands where it stood.

        Raises:
            CheckpointError: The objects are not those of the checkpoint.
        """
        restore(self.content["state"], state)
        timestamp.load_state_dict(self.content["timestamp"])

    def restore_rng(self) -> None:
        """Put the global random number generators back."""
        restore_rng(self.content["rng"])


def find_resume_point(
    options: SessionOptions, paths: CheckpointPaths, directory: RunDirectory, run_fields: Mapping[str, int | str]
) -> Resumed | None:
    """The checkpoint a resumed run goes on from; None for a fresh run, and for one that was killed before its first.

    Checkpoints that do not verify are named in a warning, passed over and set aside; `latest` is mended.

    Raises:
        CheckpointError: There is a checkpoint and no `state=` to put it into, or it cannot be loaded. Or there are
            some and none is whole: to begin at step 1 would throw away what the run has written.
    """
    if not directory.resumed:
        return None
    folder = CheckpointFolder(paths, directory.resolve, run_fields)
    search = newest_verified(folder)
    if search.found is None:
        if search.skipped:
            raise _all_damaged(directory, search.skipped)
        return None
    if not options.state:
        raise CheckpointError(
            f"run {directory.run_name!r} has {search.found.path.name} to go on from, and no state= to put it into",
            hint='give state={"model": model, "optimizer": optimizer}, the same objects as before',
        )
    content = load_checkpoint(search.found.path, run_name=directory.run_name)
    if content.get(WEIGHTS_ONLY):
        raise CheckpointError(
            f"{search.found.path.name} was saved with save_weights_only: a run cannot go on from it",
            hint=f"start a new run from its weights: load_path={str(search.found.path)!r}, load_weights_only=True",
        )
    set_aside(search.skipped)
    mend_latest(folder, search.found)
    return Resumed(content, EpochPosition.from_state(content["position"]))


def _all_damaged(directory: RunDirectory, skipped: Sequence[SkippedCheckpoint]) -> CheckpointError:
    faults = "; ".join(f"{one.path.name} {one.reason}" for one in skipped[:_SHOWN])
    more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    return CheckpointError(
        f"run {directory.run_name!r} has no checkpoint that is whole: {faults}{more}",
        hint="bring one back from a copy; move the checkpoints away to begin at step 1; or start the run again with"
        " --overwrite (overwrite=True)",
    )
