"""Where checkpoints lie and which files in a folder are ours.

Composer's three options - folder, file name, name of the latest - as one object that is checked before the
run starts: two checkpoints must never get one name, and a name must tell which run and rank it belongs to.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.checkpoint.index import index_name
from harness.errors import CheckpointError, TemplateError
from harness.naming.fields import FIELDS
from harness.naming.template import Template

RUN_FIELDS = frozenset({"run_name", "rank", "local_rank", "node_rank", "world_size", "local_world_size", "hostname"})
"""Fields that are the same at every step: all that a folder and the name of the latest may use."""
DEFAULT_FOLDER = "{run_name}/checkpoints"
DEFAULT_FILENAME = "ep{epoch}-ba{batch}-rank{rank}.pt"
DEFAULT_LATEST = "latest-rank{rank}.pt"
DAMAGED_ENDING = ".damaged"
"""What a resumed run adds to the name of a checkpoint that did not verify."""
_STEP_FIELDS = ("batch", "step")
_EXAMPLES: dict[str, int | str] = {name: field.example for name, field in FIELDS.items()}


def best_name(rank: int) -> str:
    """The name of the link to a rank's best checkpoint."""
    return f"best-rank{rank}.pt"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file in the folder whose name is a checkpoint's."""

    name: str
    """Its name in the folder."""
    size_bytes: int
    """Its size."""
    step: int | None
    """The step its name tells; None if the template has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointPaths:
    """The templates of checkpoint files.

    Example:
        >>> paths = CheckpointPaths.compile(
        ...     folder="{run_name}/checkpoints",
        ...     filename="ep{epoch}-ba{batch}-rank{rank}.pt",
        ...     latest="latest-rank{rank}.pt",
        ... )
    """

    folder: Template
    """The folder, relative to the run root."""
    filename: Template
    """A checkpoint's name in the folder."""
    latest: Template | None
    """The name of the link to the newest one; None makes none."""

    @classmethod
    def compile(
        cls, *, folder: str, filename: str, latest: str | None, world_size: int = 1, overwrite: bool = False
    ) -> CheckpointPaths:
        """Check the three texts, alone and together.

        Args:
            folder: `save_folder`. The same at every step, and with `{run_name}`.
            filename: `save_filename`. With `{batch}`, `{step}` or `{epoch}`, and `{rank}` if there are
                several.
            latest: `save_latest_filename`, or None.
            world_size: How many processes save into the folder.
            overwrite: Whether all steps may have one name, each checkpoint in the place of the one before.

        Raises:
            TemplateError: A template breaks a rule; the message names the option.
        """
        paths = cls(
            folder=Template.compile(folder, option="save_folder", fields=RUN_FIELDS),
            filename=Template.compile(filename, option="save_filename"),
            latest=None
            if latest is None
            else Template.compile(latest, option="save_latest_filename", fields=RUN_FIELDS),
        )
        paths._check_fields(world_size, overwrite=overwrite)
        paths.check_apart(_EXAMPLES)
        return paths

    def _check_fields(self, world_size: int, *, overwrite: bool) -> None:
        if "run_name" not in self.folder.fields:
            raise TemplateError(
                f"save_folder={self.folder.text!r} is the same for every run",
                hint="put {run_name} into it, as in {run_name}/checkpoints",
            )
        if not (overwrite or {*_STEP_FIELDS, "epoch"} & set(self.filename.fields)):
            raise TemplateError(
                f"save_filename={self.filename.text!r} gives every checkpoint the same name",
                hint="put {batch} into it, as in ep{epoch}-ba{batch}-rank{rank}.pt, or give save_overwrite=True",
            )
        named = {"save_filename": self.filename, "save_latest_filename": self.latest}
        for option, template in named.items():
            if template is None:
                continue
            if "/" in template.text:
                raise TemplateError(
                    f"{option}={template.text!r} has a folder in it", hint="put the folder into save_folder"
                )
            if world_size > 1 and "rank" not in {*template.fields, *self.folder.fields}:
                raise TemplateError(
                    f"{option}={template.text!r} gives {world_size} ranks one file", hint="put {rank} into it"
                )

    def check_apart(self, values: Mapping[str, int | str]) -> None:
        """See that the link and the side manifest cannot be taken for checkpoints.

        Raises:
            TemplateError: One of them could.
        """
        rank = int(values["rank"])
        others = {index_name(rank): "the side manifest", best_name(rank): "the link to the best"}
        if self.latest is not None:
            option, name = f"save_latest_filename={self.latest.text!r}", self.latest.format(values)
            if name in others:
                raise TemplateError(f"{option} gives {name!r}, {others[name]}", hint="give another name")
            others[name] = option
        known = self._known(values)
        for name, what in others.items():
            if self.filename.parse(name, **known) is not None:
                raise TemplateError(
                    f"{name!r} ({what}) reads as a checkpoint of save_filename={self.filename.text!r}",
                    hint="give names that differ in more than their numbers",
                )

    def _known(self, values: Mapping[str, int | str]) -> dict[str, int | str]:
        return {name: values[name] for name in ("run_name", "rank") if name in self.filename.fields}


class CheckpointFolder:
    """One rank's checkpoints of one run: the folder on disk, and which files in it are theirs.

    Args:
        paths: The templates.
        resolve: Gives the absolute path of a formatted template and makes its folders:
            `RunDirectory.resolve`.
        run_fields: Values of the fields that are the same for the whole attempt: `run_name`, `rank`, ….

    Raises:
        TemplateError: A template cannot be filled with these values.
        RunDirError: The folder cannot be made.
    """

    def __init__(
        self,
        paths: CheckpointPaths,
        resolve: Callable[[str], Path],
        run_fields: Mapping[str, int | str],
    ) -> None:
        paths.check_apart(run_fields)
        self.run_name = str(run_fields["run_name"])
        self.rank = int(run_fields["rank"])
        self._paths = paths
        self._resolve = resolve
        self._run_fields = dict(run_fields)
        self._known = paths._known(run_fields)
        self._relative = paths.folder.format(run_fields)
        self.index_path = resolve(f"{self._relative}/{index_name(self.rank)}")
        self.path = self.index_path.parent
        latest = paths.latest
        self.latest_path = None if latest is None else self.path / latest.format(run_fields)
        self.best_path = self.path / best_name(self.rank)

    def file(self, fields: Mapping[str, int | str]) -> Path:
        """The path of the checkpoint with these counts. The folder is made again if it is gone.

        Raises:
            TemplateError: A field of `save_filename` has no value.
            RunDirError: The folder cannot be made.
        """
        name = self._paths.filename.format({**self._run_fields, **fields})
        return self._resolve(f"{self._relative}/{name}")

    def stored(self, listed: Collection[str] = ()) -> list[StoredFile]:
        """The checkpoints in the folder, from low to high step. Everything else in it is foreign.

        Args:
            listed: Names from the side manifest: ours too, though an attempt with another template gave them.

        Raises:
            CheckpointError: The folder cannot be read.
        """
        files = []
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    values = self._values_in(entry.name)
                    size_bytes = None if values is None and entry.name not in listed else _file_size(entry)
                    if size_bytes is not None:
                        file = StoredFile(name=entry.name, size_bytes=size_bytes, step=_step_in(values))
                        files.append(file)
        except OSError as error:
            raise CheckpointError(f"the checkpoint folder {self.path} cannot be read: {error.strerror}") from error
        return sorted(files, key=lambda file: (-1 if file.step is None else file.step, file.name))

    def step_in(self, name: str) -> int | None:
        """The step that a checkpoint's name tells, if it does."""
        return _step_in(self._values_in(name))

    def is_ours(self, name: str) -> bool:
        """Whether a name is that of a checkpoint of this run and rank."""
        return self._values_in(name) is not None

    def _values_in(self, name: str) -> dict[str, int | str] | None:
        try:
            return self._paths.filename.parse(name, **self._known)
        except TemplateError:
            return {}  # ours, but it has more than one reading: its step must come from elsewhere


def _step_in(values: Mapping[str, int | str] | None) -> int | None:
    return next((int(values[field]) for field in _STEP_FIELDS if field in values), None) if values else None


def _file_size(entry: os.DirEntry[str]) -> int | None:
    """None for what is no regular file, or is gone since the folder was read."""
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
