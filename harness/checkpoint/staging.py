"""Copies a state aside, so that training goes on while the copy is written.

The copy is in CPU memory that the next one uses again: the second save of a state allocates nothing, and there is
never more than one. From CUDA it goes into pinned memory, in the order of the stream, and nobody waits for it until
it is written.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.checkpoint.plain import MAPPINGS, SEQUENCES, TENSORS

_Shape = tuple[torch.dtype, torch.Size, str]
"""Data type, size and the kind of device it is copied from."""


@dataclass(frozen=True, slots=True)
class StagedState:
    """A copy that stays as it is while training goes on."""

    content: dict[str, Any]
    """As the state that was copied, with tensors in CPU memory. Tensors that shared memory share it in the copy."""
    size_bytes: int
    """Of its tensors."""
    _events: tuple[torch.cuda.Event, ...]

    def wait(self) -> None:
        """Wait until copies from devices have arrived. Returns at once where all came from the CPU."""
        for event in self._events:
            event.synchronize()


class Staging:
    """Memory for one copy of a state.

    Call `copy` again only when the earlier copy is not needed any more: it is overwritten.
    """

    def __init__(self) -> None:
        self._memory: dict[_Shape, deque[Tensor]] = {}

    def copy(self, state: Mapping[str, Any]) -> StagedState:
        """Copy a state that `check_plain` has found good.

        Takes about as long as cloning its tensors the first time, and a fraction of that later.

        Args:
            state: Tensors and plain types, nested.
        """
        copier = _Copier(self._memory)
        with torch.no_grad():
            content = copier.copy(dict(state))
            copier.copy_memory()
        # What this state had no use for is let go.
        self._memory = copier.used
        return StagedState(content, copier.size_bytes, copier.events())


def tensor_bytes(state: Mapping[str, Any]) -> int:
    """Size of a state's tensors, memory that several share counted once: nearly that of its file."""
    sizes: dict[int, int] = {}
    todo: list[Any] = [state]
    while todo:
        obj = todo.pop()
        kind = type(obj)
        if kind in TENSORS:
            if obj.layout is torch.strided:
                storage = obj.untyped_storage()
                sizes[storage._cdata] = storage.nbytes()
        elif kind in MAPPINGS:
            todo += obj.values()
        elif kind in SEQUENCES:
            todo += obj
    return sum(sizes.values())


class _Copier:
    """One copy in the making: first all containers, then the memory of all tensors at once."""

    def __init__(self, memory: dict[_Shape, deque[Tensor]]) -> None:
        self._spare = memory
        self._copies: dict[int, Tensor] = {}
        self._from: list[Tensor] = []
        self._to: list[Tensor] = []
        self._devices: set[torch.device] = set()
        self.used: dict[_Shape, deque[Tensor]] = {}
        self.size_bytes = 0

    def copy(self, obj: Any) -> Any:
        kind = type(obj)
        if kind in TENSORS:
            return self._copy_tensor(obj)
        if kind in MAPPINGS:
            copied = kind()
            for key, value in obj.items():
                copied[key] = self.copy(value)
            if kind is not dict:
                # a module's state_dict carries its version numbers as an attribute
                copied.__dict__.update(obj.__dict__)
            return copied
        if kind is tuple or kind is list:
            return kind(self.copy(value) for value in obj)
        # Numbers and texts are returned as they are; what somebody registered as safe is his to copy.
        return copy.deepcopy(obj)

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
            return tensor.detach().to("cpu", copy=True)
        storage = tensor.untyped_storage()
        num_bytes = storage.nbytes()
        if tensor.nbytes == num_bytes and storage._cdata not in self._copies and tensor.is_contiguous():
            copied = self._memory_like(tensor, storage)
        else:
            copied = self._view_of_copy(tensor, storage)
        if type(tensor) is torch.nn.Parameter:
            return torch.nn.Parameter(copied, requires_grad=tensor.requires_grad)
        return copied.detach().requires_grad_() if tensor.requires_grad else copied

    def _memory_like(self, tensor: Tensor, storage: torch.UntypedStorage) -> Tensor:
        """Memory for a tensor that fills its storage, which nearly all do."""
        shape = (tensor.dtype, tensor.shape, tensor.device.type)
        memory = self._take(shape, storage)
        self._copies[storage._cdata] = memory
        if tensor.device.type != "meta":  # which has a shape and no content
            self._from.append(tensor)
            self._to.append(memory)
        return memory

    def _view_of_copy(self, tensor: Tensor, storage: torch.UntypedStorage) -> Tensor:
        """A tensor in the copy of a storage that is larger than it, or that others share."""
        memory = self._copies.get(storage._cdata)
        if memory is None:
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            memory = self._memory_like(whole, storage)
        return torch.empty(0, dtype=tensor.dtype).set_(
            memory.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )

    def _take(self, shape: _Shape, storage: torch.UntypedStorage) -> Tensor:
        dtype, size, device_type = shape
        spare, pinned = self._spare.get(shape), device_type == "cuda"
        memory = spare.popleft() if spare else torch.empty(size, dtype=dtype, pin_memory=pinned)
        self.used.setdefault(shape, deque()).append(memory)
        self.size_bytes += storage.nbytes()
        if pinned:
            self._devices.add(storage.device)
        return memory

    def copy_memory(self) -> None:
        if not self._devices:
            torch._foreach_copy_(self._to, self._from)
            return
        for target, source in zip(self._to, self._from, strict=True):
            target.copy_(source, non_blocking=source.device.type == "cuda")

    def events(self) -> tuple[torch.cuda.Event, ...]:
        """What tells that the copies from CUDA have arrived, one for each device."""
        return tuple(torch.cuda.current_stream(device).record_event() for device in self._devices)
