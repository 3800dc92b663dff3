"""A number that a device has yet to compute, read without anybody waiting in the step.

It is copied to pinned memory behind the work that makes it. Each later step may ask whether it has arrived; the
writer sleeps until it has. The step pays for one small copy and one event, and for no memory: both are used again
as soon as the number has been let go of.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

_SLAB = 64
"""Numbers for which pinned memory is asked for at once."""
_free: dict[tuple[torch.device, torch.dtype], deque[tuple[Tensor, torch.Event]]] = {}


class LateNumber:
    """The value that a tensor of one element has now, whatever is written into it later.

    Args:
        tensor: On a device, or on the CPU, where the value is there at once.
    """

    __slots__ = ("_event", "_free", "_host")

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.Event | None = None
        if tensor.is_cpu:
            self._host = tensor.detach().clone()
            return
        self._free = _free.setdefault((tensor.device, tensor.dtype), deque())
        try:
            self._host, self._event = self._free.pop()
        except IndexError:
            self._host, self._event = _more(self._free, tensor)
        # On the stream that computes the tensor, which need not be that of the device in use.
        stream = torch.accelerator.current_stream(tensor.device)
        plain = tensor.ndim == 0 and not tensor.requires_grad
        self._host.copy_(tensor if plain else tensor.detach().reshape(()), non_blocking=True)
        self._event.record(stream)

    @property
    def arrived(self) -> bool:
        """Whether `value` returns at once."""
        return self._event is None or bool(self._event.query())

    def value(self) -> int | float:
        """The number; sleeps until it has arrived."""
        if not self.arrived and self._event is not None:
            self._event.synchronize()
        value: int | float = self._host.item()
        return value

    def __del__(self) -> None:
        # One that is still to be written to cannot be given to the next; torch takes care of such memory.
        if self._event is not None and self._event.query():
            self._free.append((self._host, self._event))


def _more(free: deque[tuple[Tensor, torch.Event]], tensor: Tensor) -> tuple[Tensor, torch.Event]:
    slab = torch.empty(_SLAB, dtype=tensor.dtype, pin_memory=True)
    # Blocking: who waits for such an event sleeps, and keeps no processor busy.
    made: list[Any] = [(slot, torch.Event(tensor.device.type, blocking=True)) for slot in slab.unbind()]
    free.extend(made[1:])
    found: tuple[Tensor, torch.Event] = made[0]
    return found
