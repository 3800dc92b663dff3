"""What checkpoints a run has, seen from outside: by its files alone, while it may be saving more.

Whoever looks knows neither the options of the run nor its templates. Folders are found by the side manifests in them
and by `run.json`; nothing is written, and what a training process changes meanwhile is looked at again.
"""

from __future__ import annotations

import enum
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from harness.checkpoint.index import INDEX_NAME, IndexEntry, index_name, read_index
from harness.checkpoint.paths import DAMAGED_ENDING, DEFAULT_FILENAME, DEFAULT_FOLDER
from harness.errors import CheckpointError, TemplateError
from harness.naming.template import Template
from harness.run.directory import RunDirectory
from harness.run.manifest import Artifact, Manifest

_log = logging.getLogger(__name__)
_DEFAULT_NAME = Template.compile(DEFAULT_FILENAME, option="save_filename")
_DEFAULT_FOLDER = Template.compile(DEFAULT_FOLDER, option="save_folder")
_NUMBER = re.compile(r"[0-9]+")
_LOOKS = 10
"""How often a folder or a file that keeps changing is looked at."""


class State(enum.StrEnum):
    """What is known about a checkpoint's bytes."""

    LISTED = "listed"
    """It has the size that the side manifest tells; its content was not read."""
    NOT_LISTED = "not listed"
    """The side manifest does not know it, as after a kill between the rename and the list."""
    VERIFIED = "verified"
    """Its checksum is that of the side manifest; one that is not listed was loaded."""
    WRONG_SIZE = "wrong size"
    """It is torn or was overwritten."""
    DAMAGED = "damaged"
    """Its content has changed, it cannot be read, or it does not load."""
    NEWER_FORMAT = "newer format"
    """A newer version of the harness made it: whether it is good cannot be told."""
    GONE = "gone"
    """The side manifest tells of it, and there is no such file."""


BAD = frozenset({State.WRONG_SIZE, State.DAMAGED})
"""States that nobody wants a checkpoint in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFile:
    """A checkpoint as it was found."""

    name: str
    """Its name in the folder."""
    step: int | None
    """The step it was saved after; None where neither the side manifest nor the name tells it."""
    epoch: int | None
    """Epochs completed then; None where nothing tells it."""
    size_bytes: int
    """Its size on the disk; of one that is gone, the listed one."""
    entry: IndexEntry | None
    """Its line in the side manifest."""
    state: State
    """What is known about it."""
    reason: str | None = None
    """What is wrong with it."""
    links: tuple[str, ...] = ()
    """Names of links in the folder that point to it, such as `latest-rank0.pt`."""

    @property
    def order(self) -> tuple[int, str]:
        """Sorts by step; those of unknown step come first."""
        return (-1 if self.step is None else self.step, self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankFolder:
    """A folder with the checkpoints of one rank."""

    path: Path
    """The folder, below the run directory, without links."""
    run_name: str
    """The run."""
    rank: int
    """The rank."""
    alone: bool
    """Whether no other rank has checkpoints in it."""
    recorded: Mapping[str, Artifact] = field(default_factory=dict)
    """What `run.json` tells of its files, by name."""

    @property
    def index_path(self) -> Path:
        """The side manifest."""
        return self.path / index_name(self.rank)

    def read_index(self) -> dict[str, IndexEntry]:
        """The side manifest as it is now.

        Raises:
            CheckpointError: It cannot be read.
        """
        return read_index(self.index_path)


def find_folders(directory: RunDirectory, manifest: Manifest) -> list[RankFolder]:
    """The folders of a run that have checkpoints, by path and rank; one that several ranks share, once for each.

    A symbolic link below the run directory is not followed, with a warning where checkpoints should be behind it.

    Raises:
        CheckpointError: A folder cannot be read.
    """
    found: dict[tuple[Path, int], dict[str, Artifact]] = {key: {} for key in _find_indexes(directory.path)}
    for artifact in manifest.artifacts:
        path = PurePosixPath(artifact.path)
        if artifact.kind == "checkpoint" and not path.is_absolute() and ".." not in path.parts:
            recorded = found.setdefault((directory.path / path.parent, manifest.rank), {})
            recorded[path.name] = artifact
    usual = directory.root / _DEFAULT_FOLDER.format({"run_name": directory.run_name})
    if usual not in {path for path, _ in found}:
        found[usual, manifest.rank] = {}  # a run that was killed before its first one was listed
    ranks = [path for path, _ in found]
    return [
        RankFolder(
            path=path, run_name=directory.run_name, rank=rank, alone=ranks.count(path) == 1, recorded=found[path, rank]
        )
        for path, rank in sorted(found)
        if _is_plain_folder(path)
    ]


def list_files(folder: RankFolder, is_alive: Callable[[], bool]) -> list[CheckpointFile]:
    """The checkpoints in a folder, by step. Reads names and sizes only: 1,000 take some ms.

    Args:
        folder: From `find_folders`.
        is_alive: Whether the run is going on. What is listed and not there is then on its way out, not gone.

    Raises:
        CheckpointError: The folder cannot be read.
    """
    for _ in range(_LOOKS):
        sizes, links, is_whole = _scan(folder.path)
        index = folder.read_index()
        seen = _describe_all(folder, sizes, links, index)
        files = _settle(folder, seen)
        if is_whole and len(files) == len(seen):
            break  # else some were rotated away under this look, and newer ones are not in it
    missing = [name for name in index if name not in sizes]
    if missing and not is_alive():
        files += _missing(folder, missing, links)
    return sorted(files, key=lambda file: file.order)


def resume_choice(files: Iterable[CheckpointFile]) -> CheckpointFile | None:
    """The one that a resumed run goes on from, as far as their states tell; None where there is none.

    Of those that were not verified, it is the newest that may be good. Where that one holds the weights alone, or was
    made by a newer version of the harness, resuming refuses.
    """
    for file in sorted(files, key=lambda file: file.order, reverse=True):
        if file.state is State.NEWER_FORMAT:
            return None
        if file.step is not None and file.state not in {*BAD, State.GONE}:
            return None if file.entry is not None and file.entry.weights_only else file
    return None


def _find_indexes(run: Path) -> Iterator[tuple[Path, int]]:
    def fail(error: OSError) -> None:
        # a rotation or another run's --overwrite may have taken it away meanwhile
        if not isinstance(error, FileNotFoundError):
            raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from error

    for path, folders, names in os.walk(run, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from ((Path(path), int(match["rank"])) for name in names if (match := INDEX_NAME.fullmatch(name)))


def _is_plain_folder(path: Path) -> bool:
    if not path.is_dir():
        return False
    if path.resolve() != path:
        _log.warning("%s is behind a symbolic link, which is not followed: its checkpoints are left out", path)
        return False
    return True


def _scan(path: Path) -> tuple[dict[str, int], dict[str, list[str]], bool]:
    """Sizes of the regular files, the names of links by what they point to, and whether none vanished meanwhile."""
    is_whole = True
    sizes: dict[str, int] = {}
    links: dict[str, list[str]] = {}
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue  # on its way in or out
                try:
                    if entry.is_symlink():
                        links.setdefault(str(Path(entry.path).readlink()), []).append(entry.name)
                    elif entry.is_file(follow_symlinks=False):
                        sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    is_whole = False
    except FileNotFoundError:
        return {}, {}, True
    except OSError as error:
        raise CheckpointError(f"the checkpoint folder {path} cannot be read: {error.strerror}") from error
    return sizes, links, is_whole


def _describe_all(
    folder: RankFolder,
    sizes: Mapping[str, int],
    links: Mapping[str, Sequence[str]],
    index: Mapping[str, IndexEntry],
) -> list[CheckpointFile]:
    """The files that are checkpoints of this rank; all others are foreign."""
    shapes = {_shape(name) for name in (*index, *folder.recorded)} if folder.alone else set()
    return [
        _describe(folder, name, size_bytes, index.get(name), links.get(name, ()))
        for name, size_bytes in sizes.items()
        if name in index or (name != folder.index_path.name and _is_own(folder, name, shapes))
    ]


def _is_own(folder: RankFolder, name: str, shapes: set[str]) -> bool:
    """Whether a name that is not listed is a checkpoint's: the usual one, or one like those that are known."""
    if name in folder.recorded:
        return True
    fields = _usual_fields(name)
    return _shape(name) in shapes if fields is None else fields["rank"] == folder.rank


def _usual_fields(name: str) -> Mapping[str, int | str] | None:
    try:
        return _DEFAULT_NAME.parse(name)
    except TemplateError:
        return None


def _shape(name: str) -> str:
    return _NUMBER.sub("0", name)


def _describe(
    folder: RankFolder, name: str, size_bytes: int, entry: IndexEntry | None, links: Sequence[str]
) -> CheckpointFile:
    state, reason = State.LISTED, None
    if entry is None:
        state = State.NOT_LISTED
    elif entry.size_bytes != size_bytes:
        state, reason = State.WRONG_SIZE, f"has {size_bytes} bytes and was saved with {entry.size_bytes}"
    step, epoch = _counts(folder, name, entry)
    return CheckpointFile(
        name=name,
        step=step,
        epoch=epoch,
        size_bytes=size_bytes,
        entry=entry,
        state=state,
        reason=reason,
        links=tuple(sorted(links)),
    )


def _counts(folder: RankFolder, name: str, entry: IndexEntry | None) -> tuple[int | None, int | None]:
    """Step and epoch, from whatever tells them."""
    if entry is not None:
        return entry.step, entry.epoch
    fields = _usual_fields(name)
    if fields is not None:
        return int(fields["batch"]), int(fields["epoch"])
    artifact = folder.recorded.get(name)
    return (None if artifact is None else artifact.step), None


def _settle(folder: RankFolder, files: Sequence[CheckpointFile]) -> list[CheckpointFile]:
    """Look again at what is not as listed, until two looks agree: a save or a rotation may be at work."""
    doubtful = [file for file in files if file.state is not State.LISTED]
    settled = [file for file in files if file.state is State.LISTED]
    for _ in range(_LOOKS):
        if not doubtful:
            break
        again = [_look_again(folder, file) for file in doubtful]
        index = folder.read_index()  # after the sizes: a file is listed after it has its name
        pairs = [
            (file, _describe(folder, file.name, size_bytes, index.get(file.name), file.links))
            for file, size_bytes in zip(doubtful, again, strict=True)
            if size_bytes is not None
        ]
        settled += [new for old, new in pairs if new == old or new.state is State.LISTED]
        doubtful = [new for old, new in pairs if not (new == old or new.state is State.LISTED)]
    # what never held still was being replaced: nothing is known of it
    return settled + [replace(file, state=State.NOT_LISTED, reason=None, entry=None) for file in doubtful]


def _look_again(folder: RankFolder, file: CheckpointFile) -> int | None:
    """The size of a file; None when it is gone."""
    try:
        return (folder.path / file.name).lstat().st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{folder.path / file.name} cannot be looked at: {error.strerror}") from error


def _missing(folder: RankFolder, names: Iterable[str], links: Mapping[str, Sequence[str]]) -> Iterator[CheckpointFile]:
    """Those that are still listed, and of which there is still no file."""
    index = folder.read_index()
    for name in names:
        path = folder.path / name
        if name in index and (path.is_symlink() or not path.is_file()):
            state, reason = State.GONE, "is listed, and there is no such file: it was removed, or never finished"
            if os.path.lexists(folder.path / (name + DAMAGED_ENDING)):
                reason = f"was damaged, and is kept as {name}{DAMAGED_ENDING}"
            if os.path.lexists(path):
                state, reason = State.DAMAGED, "is no regular file"
            listed = _describe(folder, name, index[name].size_bytes, index[name], links.get(name, ()))
            yield replace(listed, state=state, reason=reason)
