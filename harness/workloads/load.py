"""From what the user typed to a workload: a bundled name, or the import path of a function that builds it."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.errors import HarnessError, WorkloadError
from harness.workloads.base import Workload
from harness.workloads.options import convert_options

BUNDLED: Mapping[str, str] = {
    "digits": "harness.workloads.digits:build",
    "charlm": "harness.workloads.charlm:build",
}
"""Bundled workloads: name and import path."""

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def load_workload(spec: str, options: Mapping[str, str] | None = None) -> Workload:
    """Find a workload and build it.

    Seed first (`--seed`): `build` draws the model's weights from torch's global generator.

    Args:
        spec: A bundled name (`digits`, `charlm`) or an import path (`my_pkg.train:build`). Modules of the
            current directory are found, as with `python -m`.
        options: Name to text, checked against the signature of `build`.

    Raises:
        WorkloadError: It is not known, does not import, cannot be built or takes no such options. What the
            user's own code raised is its cause, with its own traceback.
        HarnessError: What `build` itself raises of this kind is passed on (a missing extra, a wrong value).
    """
    build = _find(spec)
    keywords = convert_options(build, options or {}, workload=spec)
    try:
        workload = build(**keywords)
    except HarnessError:
        raise
    except (Exception, SystemExit) as error:  # argparse ends the process for an argument that it does not know
        raise WorkloadError(f"workload {spec!r}: {_name(build)} raised {_short(error)}") from error
    if not isinstance(workload, Workload):
        raise WorkloadError(
            f"workload {spec!r}: {_name(build)} returned a {type(workload).__name__}, expected a Workload",
            hint="return harness.Workload(model=…, train_dataloader=…, optimizer=…)",
        )
    return workload if workload.name else replace(workload, name=spec)


def _find(spec: str) -> Callable[..., Any]:
    path = BUNDLED.get(spec, spec)
    module_name, colon, attribute = path.partition(":")
    is_import_path = colon and _DOTTED.fullmatch(module_name) and _DOTTED.fullmatch(attribute)
    if not is_import_path or module_name.endswith(".py"):
        raise _unknown(spec)
    found: Any = _import(spec, module_name)
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise _no_attribute(spec, found, name)
        found = getattr(found, name)
    if not callable(found):
        raise WorkloadError(
            f"workload {spec!r}: {attribute!r} is a {type(found).__name__}, expected a function that returns a Workload"
        )
    function: Callable[..., Any] = found
    return function


def _unknown(spec: str) -> WorkloadError:
    nearest = difflib.get_close_matches(spec, BUNDLED, n=1)
    meant = f"did you mean {nearest[0]!r}? " if nearest else ""
    if ".py" in spec or "/" in spec:
        meant = "an import path is not a file: no slashes and no .py; "
    return WorkloadError(
        f"there is no workload {spec!r}",
        hint=f"{meant}give one of {', '.join(BUNDLED)}, or an import path such as my_pkg.train:build",
    )


def _import(spec: str, module_name: str) -> ModuleType:
    # Left there, as `python -m` does: modules may import their neighbours later, and spawned workers do so
    # too.
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except HarnessError:
        raise
    except (Exception, SystemExit) as error:  # a script without a main guard may end itself
        raise WorkloadError(
            f"workload {spec!r}: importing {module_name!r} failed with {_short(error)}",
            hint=f"try `python -c 'import {module_name}'` in {here}",
        ) from error


def _no_attribute(spec: str, owner: Any, name: str) -> WorkloadError:
    public = [other for other in dir(owner) if not other.startswith("_")]
    nearest = difflib.get_close_matches(name, public, n=1)
    return WorkloadError(
        f"workload {spec!r}: {getattr(owner, '__name__', owner)!r} has no {name!r}",
        hint=f"did you mean {nearest[0]!r}?" if nearest else "give an import path such as my_pkg.train:build",
    )


def _name(build: Callable[..., Any]) -> str:
    return f"{getattr(build, '__qualname__', None) or type(build).__name__}()"


def _short(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
