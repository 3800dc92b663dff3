"""Finds what `torch.load(weights_only=True)` would refuse, while the run that holds it is still alive.

torch.save writes any object and only the load says that it cannot be read. Checked before the save, a state
that holds a custom object is an error that names the entry, and not the end of a run that cannot be resumed.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Any

import torch

from harness.errors import CheckpointError

# Exact types: a subclass, such as numpy.float64 of float, is pickled under its own name and refused on load.
_SCALARS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.device, torch.Size}
)
TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
SEQUENCES = frozenset({list, tuple, set})
MAPPINGS = frozenset({dict, OrderedDict, Counter})
_MAX_DEPTH = 100
_HINT = (
    "let state_dict() return tensors, numbers, strings, lists, tuples, sets and dicts only; float(x) makes a"
    " plain number of a numpy one, torch.from_numpy(x) a tensor of an array"
)


def check_plain(obj: object, path: str) -> None:
    """See that `obj` holds only what a weights-only load reads back.

    Types that were registered with `torch.serialization.add_safe_globals` pass: who loads must register them
    too.

    Args:
        obj: What is going to be saved.
        path: What to call it in the error, such as `state["sampler"]`.

    Raises:
        CheckpointError: It holds something else. The message names the first such entry and its type.
    """
    safe = frozenset(entry[0] if isinstance(entry, tuple) else entry for entry in _safe_globals())
    found = _first_unplain(obj, safe, 0)
    if found is not None:
        keys, value = found
        where = path + "".join(f"[{key!r}]" if not isinstance(key, str) else f'["{key}"]' for key in keys)
        raise CheckpointError(f"{where} {_reason(value, len(keys))}", hint=_HINT)


def _reason(value: object, depth: int) -> str:
    if depth > _MAX_DEPTH:
        return f"is nested deeper than {_MAX_DEPTH} levels"
    kind = type(value)
    name = "an empty bytes object" if kind is bytes else f"a {kind.__module__}.{kind.__qualname__}"
    return f"is {name}, which no safe load could read back"


def _safe_globals() -> Iterable[Any]:
    return torch.serialization.get_safe_globals()


def _first_unplain(obj: object, safe: frozenset[Any], depth: int) -> tuple[list[object], object] | None:
    """The keys that lead to the first entry that is not plain, and the entry."""
    kind = type(obj)
    if kind is bytes and not obj:
        return [], obj  # pickled as a call of bytes(), which a weights-only load refuses
    if kind in _SCALARS or kind in TENSORS or kind in safe:
        return None
    if depth > _MAX_DEPTH or kind not in SEQUENCES | MAPPINGS:
        return [], obj
    for key, value in _entries(obj):
        # a key is pickled as well, and shown as what leads to itself
        found = _first_unplain(key, safe, depth + 1) or _first_unplain(value, safe, depth + 1)
        if found is not None:
            return [key, *found[0]], found[1]
    return None


def _entries(obj: Any) -> Iterable[tuple[Any, Any]]:
    if type(obj) in MAPPINGS:
        # a module's state_dict carries its version numbers as an attribute, which is pickled with it
        return [*obj.items(), *getattr(obj, "__dict__", {}).items()]
    return enumerate(obj)
