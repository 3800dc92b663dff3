"""The side manifest of a checkpoint folder: what each file's bytes must be.

torch looks at no checksum when it loads: a flipped bit in a tensor loads without a word. One small JSON file per rank,
`checkpoints-rank0.json`, has each checkpoint's size and CRC-32C.
"""

from __future__ import annotations

import datetime
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from harness.errors import CheckpointError
from harness.run.durable import write_atomically

_log = logging.getLogger(__name__)

INDEX_NAME = re.compile(r"checkpoints-rank(?P<rank>0|[1-9][0-9]{0,8})\.json")
"""The names that `index_name` gives."""


class IndexEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One checkpoint file as it was committed."""

    size_bytes: int
    """Its size."""
    crc32c: str
    """CRC-32C of its bytes, eight hexadecimal digits."""
    step: int
    """The step it was saved after."""
    epoch: int
    """Epochs completed then."""
    saved: str
    """When, UTC, as ISO 8601."""
    metric: str | None = None
    """What `save_best` goes by."""
    value: float | None = None
    """Of that metric after this step; None where it was not logged then."""
    for_best: bool = False
    """Saved because it was one of the best, and for no other reason: it goes when it is not any more."""
    weights_only: bool = False
    """Whether it holds the weights alone, so that no run can go on from it."""


_decoder = msgspec.json.Decoder(dict[str, IndexEntry])


def index_name(rank: int) -> str:
    """The file name of a rank's side manifest."""
    return f"checkpoints-rank{rank}.json"


def now() -> str:
    """The time of an entry that is made now."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def read_index(path: Path) -> dict[str, IndexEntry]:
    """The entries by file name. One that is not there, or was damaged (with a warning), has none.

    Without its entry a checkpoint is still found: it is then verified by the checksum it carries, and by loading it.

    Raises:
        CheckpointError: The file is there and cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}",
            hint="make it readable; or remove it: checkpoints carry a checksum of their own",
        ) from error
    try:
        entries = _decoder.decode(data)
    except msgspec.DecodeError as error:
        _log.warning("%s is damaged (%s): its checkpoints will be verified by their own checksums", path, error)
        return {}
    # a name is joined to the folder later: nothing that leads out of it may come from the file
    return {name: entry for name, entry in entries.items() if "/" not in name and not name.startswith(".")}


def write_index(path: Path, entries: Mapping[str, IndexEntry], *, durable: bool = True) -> None:
    """Replace the side manifest in one step, in the order of steps.

    Raises:
        RunDirError: It could not be written; the old one is as it was.
    """
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].step, item[0])))
    data = msgspec.json.format(msgspec.json.encode(ordered), indent=1) + b"\n"
    write_atomically(path, data, durable=durable)
