"""What may be logged: one number under a usable name. Everything else is refused with what to do instead.

A tensor on a device is not read here, as that would make the step wait for the device: the number is copied behind
the work that makes it (`late.py`), and the writer reads it when it has arrived.
"""

from __future__ import annotations

import numbers
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from harness.loggers.late import LateNumber

Number = int | float
MAX_NAME_LENGTH = 256
RESERVED_NAMES = frozenset({"step", "time"})


class Deferred(NamedTuple):
    """A number on its way from a device to `values[name]`."""

    values: dict[str, Any]
    name: str
    number: LateNumber


def check_name(name: object) -> None:
    """Refuse a metric name that some destination cannot hold.

    Raises:
        ConfigError: The name is no string, is empty, too long, reserved, or has control characters.
    """
    if not isinstance(name, str):
        raise ConfigError(
            f"metric name {name!r} is a {type(name).__name__}, not a string", hint='write {"loss": value}'
        )
    if not name or len(name) > MAX_NAME_LENGTH:
        shown = f"{name[:40]}…" if name else name
        raise ConfigError(
            f"metric name {shown!r} has {len(name)} characters, expected 1 to {MAX_NAME_LENGTH}",
            hint="choose a short name such as train/loss",
        )
    if name in RESERVED_NAMES:
        raise ConfigError(
            f"metric name {name!r} is taken: each line of the metrics file has a {name} of its own",
            hint=f"choose another name, for example train/{name}",
        )
    if not name.isprintable():
        raise ConfigError(f"metric name {name!r} has control characters", hint="use printable characters only")


def to_number(name: str, value: object) -> Number:
    """One number from whatever a metric may be, tensors aside.

    Raises:
        ConfigError: It is not one real number.
    """
    if isinstance(value, int):  # bool too
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if getattr(value, "size", None) == 1 and callable(getattr(value, "item", None)):
        plain = value.item()  # type: ignore[attr-defined]
        if isinstance(plain, numbers.Real):
            return to_number(name, plain)
    raise _not_a_number(name, value)


def as_tensor(value: object) -> torch.Tensor | None:
    """The value if it is a tensor. Does not import torch: without it there are none."""
    torch = sys.modules.get("torch")
    return value if torch is not None and isinstance(value, torch.Tensor) else None


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that is not one real number.

    Raises:
        ConfigError: It has more or less than one element, or is complex or without data.
    """
    if tensor.numel() != 1:
        raise ConfigError(
            f"metric {name!r} is a tensor of shape {tuple(tensor.shape)}, expected one number",
            hint=f"log a single value, for example {name}.mean()",
        )
    if tensor.is_complex() or tensor.is_meta:
        raise ConfigError(
            f"metric {name!r} is a {tensor.dtype} tensor on {tensor.device}, expected a real number",
            hint="log its real part or absolute value" if tensor.is_complex() else "log a tensor that has data",
        )


def on_device(tensor: torch.Tensor) -> bool:
    """Whether reading this tensor makes the caller wait for a device."""
    return not tensor.is_cpu


def tensor_value(
    values: dict[str, Any], name: str, tensor: torch.Tensor, defer: Callable[[torch.Tensor], bool]
) -> Deferred | None:
    """Put a tensor's number into `values`, or send for it.

    Raises:
        ConfigError: The tensor is not one real number.
    """
    if not defer(tensor):
        values[name] = _read(name, tensor)
        return None
    check_tensor(name, tensor)
    from harness.loggers.late import LateNumber

    values[name] = None  # keeps its place in the order
    return Deferred(values, name, LateNumber(tensor))


def resolve(deferred: Iterable[Deferred]) -> None:
    """Put the numbers of device tensors where they belong.

    Waits for the device; never called on the training thread.
    """
    for values, name, number in deferred:
        values[name] = to_number(name, number.value())


def plain_params(params: Mapping[str, object]) -> dict[str, bool | int | float | str]:
    """Settings as one flat dictionary: nested keys joined by a dot, what is no number or text written as
    text.

    Raises:
        ConfigError: It is not a mapping.
    """
    if not isinstance(params, Mapping):
        raise ConfigError(f"params is a {type(params).__name__}, expected a mapping", hint='write {"lr": 0.1}')
    flat: dict[str, bool | int | float | str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            flat.update({f"{key}.{inner}": plain for inner, plain in plain_params(value).items()})
        elif isinstance(value, bool | int | float | str):
            flat[str(key)] = value
        else:
            flat[str(key)] = str(value)
    return flat


def _read(name: str, tensor: torch.Tensor) -> Number:
    try:
        number = tensor.item()
    except (RuntimeError, ValueError):
        check_tensor(name, tensor)  # checked only now: the usual case need not pay for it
        raise
    return number if type(number) is float else to_number(name, number)


def _not_a_number(name: str, value: object) -> ConfigError:
    shape = getattr(value, "shape", None)
    got = f"a {type(value).__name__}" + (f" of shape {shape}" if shape else f" ({value!r:.40})")
    if value is None:
        got, hint = "None", "leave it out of the dictionary in steps that have no value"
    elif isinstance(value, str):
        hint = "text goes to log_text, settings to log_params"
    elif isinstance(value, complex):
        hint = "log its real part or absolute value"
    else:
        hint = f"log a single value, for example the mean of {name}"
    return ConfigError(f"metric {name!r} is {got}, expected one number", hint=hint)
