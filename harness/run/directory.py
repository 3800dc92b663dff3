"""Where everything of a run lies: one directory under the root, named after the run.

The only place that turns names and formatted templates into paths. The root may be a symbolic link and is
resolved once; below it none is followed.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from harness.errors import RunDirError, TemplateError
from harness.naming.run_name import validate_run_name
from harness.run.claim import DrawsNames, Resume, claim_generated, claim_name, nothing_to_resume, prepare_root
from harness.run.durable import disk_error, open_folder
from harness.run.layout import (
    DIRECTORY_MODE,
    LOCK_NAME,
    MANIFEST_NAME,
    PRIVATE_MODE,
    PRIVATE_NAME,
    RECIPE_NAME,
    is_own_name,
)
from harness.run.lock import RunLock, is_locked
from harness.run.manifest import RunListing, read_listing


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDirectory:
    """One run's directory: made by `claim` and `claim_generated`, or looked at with `find`."""

    root: Path
    """The folder that holds the runs, absolute and without links."""
    run_name: str
    """The run's name, the directory's too."""
    resumed: bool
    """Whether there was a run to go on with."""
    lock: RunLock | None
    """Held by the owner; None for ranks and readers that do not own the run."""

    @classmethod
    def claim(cls, root: Path, run_name: str, *, resume: Resume = False, overwrite: bool = False) -> RunDirectory:
        """Make `root/run_name` and own it until `release`; an existing run needs `resume` or `overwrite`.

        Args:
            root: The folder that holds the runs; made if it is not there.
            run_name: A valid name.
            resume: True goes on with a run that is there; "auto" does so, or starts a new one.
            overwrite: Removes the run that is there. Never one that is alive, nor what is no run.

        Raises:
            ConfigError: Both options are given, or the name breaks the rules.
            RunDirExistsError: There is a run of this name and no option says what to do with it.
            RunLockedError: A live process holds it.
            RunDirError: The root cannot be written, there is nothing to resume, or what is there is no run.
        """
        if resume is True and not root.exists():
            raise nothing_to_resume(root / validate_run_name(run_name))
        resolved = prepare_root(root)
        lock, resumed = claim_name(resolved, run_name, resume=resume, overwrite=overwrite)
        return cls(root=resolved, run_name=run_name, resumed=resumed, lock=lock)

    @classmethod
    def claim_generated(cls, root: Path, generator: DrawsNames) -> RunDirectory:
        """Make a directory under a generated name and own it. A name that is taken is drawn again.

        Raises:
            RunDirError: The root cannot be written, or no free name was found.
        """
        resolved = prepare_root(root)
        run_name, lock = claim_generated(resolved, generator)
        return cls(root=resolved, run_name=run_name, resumed=False, lock=lock)

    @classmethod
    def find(cls, root: Path, run_name: str) -> RunDirectory:
        """The directory of a run that is there, without owning it: for readers and for ranks other than 0.

        Raises:
            RunNameError: The name breaks the rules.
            RunDirError: There is no such directory.
        """
        validate_run_name(run_name)
        try:
            resolved = root.resolve(strict=True)
            with open_folder(resolved / run_name):
                pass
        except OSError as error:
            raise disk_error("find the run", root / run_name, error) from error
        return cls(root=resolved, run_name=run_name, resumed=True, lock=None)

    def release(self) -> None:
        """Let go of the run. A second call does nothing."""
        if self.lock is not None:
            self.lock.release()

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self.root / self.run_name

    @property
    def manifest_path(self) -> Path:
        """`run.json`."""
        return self.path / MANIFEST_NAME

    @property
    def recipe_path(self) -> Path:
        """`recipe.toml`, the resolved recipe."""
        return self.path / RECIPE_NAME

    @property
    def private_dir(self) -> Path:
        """The folder for the profiler's raw files; see `make_private_dir`."""
        return self.path / PRIVATE_NAME

    def steps_path(self, rank: int) -> Path:
        """The step file of a rank."""
        return self.path / f"steps-rank{rank}.jsonl"

    def metrics_path(self, rank: int) -> Path:
        """The file of what a rank logged, where the logger's template was left alone."""
        return self.path / f"metrics-rank{rank}.jsonl"

    def is_alive(self) -> bool:
        """Whether a live process owns the run.

        Raises:
            RunDirError: The lock is there and cannot be looked at.
        """
        return is_locked(self.path / LOCK_NAME)

    def make_private_dir(self) -> Path:
        """Make `private_dir`, for this user only, if it is not there.

        Raises:
            RunDirError: It cannot be made, or a link or a file has its name.
        """
        try:
            with open_folder(self.path) as run:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(PRIVATE_NAME, PRIVATE_MODE, dir_fd=run)
                # one that was there may have come from somewhere else, with other permissions
                with open_folder(PRIVATE_NAME, dir_fd=run) as private:
                    os.fchmod(private, PRIVATE_MODE)
        except OSError as error:
            raise disk_error("make", self.private_dir, error) from error
        return self.private_dir

    def check_in_place(self) -> None:
        """See that the directory claimed is still the one at `path`, so that nothing is written elsewhere.

        Raises:
            RunDirError: It was removed, renamed or replaced.
        """
        if self.lock is not None and not self.lock.in_place():
            raise RunDirError(
                f"the run directory {self.path} was removed, renamed or replaced while the run was going",
                hint="put it back under its name; nothing more is written until then",
            )

    def relative(self, path: Path) -> str:
        """A path of this run as the manifest writes it: relative to the run directory, with `/`.

        Raises:
            RunDirError: It lies outside the run directory.
        """
        try:
            return path.relative_to(self.path).as_posix()
        except ValueError:
            raise RunDirError(f"{path} does not lie in the run directory {self.path}") from None

    def resolve(self, relative: str) -> Path:
        """The absolute path of a formatted template; the folders it needs are made.

        Args:
            relative: Such as `foo/traces/rank0.000012.pt.trace.json.gz`: begins with the run's name.

        Raises:
            TemplateError: It lies outside the run directory, or names a file of the harness's own.
            RunDirError: A folder cannot be made, is a symbolic link, or the run directory is gone.
        """
        parts = relative.split("/")
        if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
            raise TemplateError(f"{relative!r} is no plain relative path")
        if parts[0] != self.run_name:
            raise TemplateError(
                f"{relative!r} does not lie in the directory of the run {self.run_name!r}",
                hint="begin the template with {run_name}/",
            )
        if len(parts) > 1 and is_own_name(parts[1]):
            raise TemplateError(f"{relative!r} is a file of the harness's own", hint="give another template")
        self._make_folders(parts[:-1])
        return self.root.joinpath(*parts)

    def _make_folders(self, parts: list[str]) -> None:
        """Make the folders below the run directory, but not that itself: a removed run stays removed."""
        path = self.path
        try:
            with contextlib.ExitStack() as opened:
                folder = opened.enter_context(open_folder(path))
                for part in parts[1:]:
                    path = path / part
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, DIRECTORY_MODE, dir_fd=folder)
                    folder = opened.enter_context(open_folder(part, dir_fd=folder))
        except OSError as error:
            raise disk_error("use the folder", path, error) from error


def list_runs(root: Path) -> list[RunListing]:
    """The runs in `root`, by start time and name: what `harness ls` shows. 10,000 take well under a second.

    A run that calls itself running and whose lock nobody holds is `crashed`; one whose `run.json` cannot be
    read is `unreadable`. Folders without a `run.json` are no runs.

    Raises:
        RunDirError: The root is there and cannot be read. One that is not there holds no runs.
    """
    listings = []
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                    listing = _listing(Path(entry.path))
                    if listing is not None:
                        listings.append(listing)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise disk_error("list the runs in", root, error) from error
    return sorted(listings, key=lambda listing: (listing.started or "", listing.run_name))


def _listing(path: Path) -> RunListing | None:
    listing = read_listing(path / MANIFEST_NAME)
    if listing is None or listing.status != "running":
        return listing
    with contextlib.suppress(RunDirError):  # a lock that cannot be looked at says nothing
        if not is_locked(path / LOCK_NAME):
            # it may have ended properly between the two looks
            listing = read_listing(path / MANIFEST_NAME) or listing
            return listing.crashed() if listing.status == "running" else listing
    return listing
