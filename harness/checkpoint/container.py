"""Looks at a checkpoint file before torch does, so that a small file cannot take all memory.

torch runs no code of a file that it loads with `weights_only=True`. But it unfolds compressed entries, and makes
objects of the size that the file asks for.
"""

from __future__ import annotations

import os
import pickletools
import stat
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from harness.checkpoint.state import cause
from harness.errors import CheckpointError

_LOCAL_HEADER = struct.Struct("<26xHH")
"""Of an entry in the archive: the lengths of its name and of what else comes before its content."""
_PICKLE = "data.pkl"
_SIZED = b"bytearray"
"""The one thing that a weights-only load makes of a number: so many zeros."""
_FUNCTIONS = {"__builtin__ bytearray": "bytearray", "builtins bytearray": "bytearray", "_codecs encode": "encode"}
_PUT = frozenset({"BINPUT", "LONG_BINPUT"})
_GET = frozenset({"BINGET", "LONG_BINGET"})


def check_container(path: Path) -> None:
    """Refuse what is no plain file, and no archive as torch writes it.

    Raises:
        OSError: It cannot be read.
        CheckpointError: It is something else.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise CheckpointError(f"{path.name} is no regular file")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise CheckpointError(f"{path.name} is torn or no checkpoint: {cause(error)}") from error
        for entry in entries:
            if entry.compress_size != entry.file_size:
                # torch stores without compression; a small file that unfolds into a huge one is an attack
                raise CheckpointError(f"{path.name} is compressed, which no checkpoint is: {entry.filename}")
        places = [entry.header_offset for entry in entries]
        if sum(entry.file_size for entry in entries) > size_bytes or not all(0 <= at < size_bytes for at in places):
            raise CheckpointError(f"{path.name} says that it holds more bytes than it has: torn or no checkpoint")
        for entry in entries:
            if entry.filename.endswith(_PICKLE) and _asks_for_zeros(_content(file, entry)):
                raise CheckpointError(f"{path.name} is torn, or asks for memory that nothing in it fills")


def _content(file: BinaryIO, entry: zipfile.ZipInfo) -> bytes:
    """An entry's bytes. Not through zipfile, which wants the CRC-32 that a checkpoint is saved without."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size:
        return b""
    file.seek(sum(_LOCAL_HEADER.unpack(header)), os.SEEK_CUR)
    return file.read(entry.file_size)


def _asks_for_zeros(pickled: bytes) -> bool:
    """Whether a pickle may call `bytearray` with a number, or ends before that can be told.

    A byte array that was saved is called with nothing, or with what `_codecs.encode` makes of a text. So the one or the
    other follows it on the stack. Whatever else follows is refused, wherever it may lead.
    """
    if _SIZED not in pickled:
        return False
    memo: dict[object, str] = {}
    last = ""
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in _PUT:
                memo[argument] = last
                continue
            kind = _pushed(opcode.name, argument, memo)
            if last == "bytearray" and kind not in ("encode", "nothing"):
                return True
            last = kind
    except ValueError:
        return True
    return False


def _pushed(name: str, argument: object, memo: dict[object, str]) -> str:
    """What an opcode puts on the stack, as far as it matters here."""
    if name == "GLOBAL":
        return _FUNCTIONS.get(str(argument), "")
    if name in _GET:
        return memo.get(argument, "")
    return "nothing" if name == "EMPTY_TUPLE" else ""
