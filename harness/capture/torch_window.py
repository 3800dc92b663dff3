"""One capture window as torch.profiler sees it: built, stepped, stopped, exported, gone.

The rest of the package knows steps and files; what torch needs to be told, and what it gets wrong, is here.
"""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerAction, ProfilerActivity

from harness.capture.exclusive import ProfilerClaim
from harness.capture.finisher import RAW_NAME
from harness.capture.options import ProfileOptions
from harness.capture.schedule import Window
from harness.errors import CaptureError

_PATH_KINETO_GETS_RIGHT = re.compile(r"[A-Za-z0-9_./+=@,:~ -]+")


class TorchWindow:
    """A `torch.profiler.profile` for the steps of one window.

    Its step count is the run's, so that `ProfilerStep#N` is global step N. On a CUDA device it also records
    CUDA activity.

    Args:
        window: The steps.
        options: What to record.
        device_type: Where the run computes, as `torch.device.type`; None where this process computes now.
    """

    def __init__(self, window: Window, options: ProfileOptions, *, device_type: str | None) -> None:
        self.window = window
        self.recording = False
        self._stopped = True
        self._claim = ProfilerClaim()
        self._profile = torch.profiler.profile(
            activities=_activities(options, device_type),
            schedule=partial(_action, window),
            record_shapes=options.record_shapes,
            profile_memory=options.profile_memory,
            with_stack=options.with_stack,
            with_flops=options.with_flops,
            with_modules=options.with_modules,
            experimental_config=_experimental_config(options),
        )
        self._claim.take()

    def start(self) -> None:
        """Begin the window's first step."""
        self._profile.step_num = self.window.first_warmup
        self._profile.start()
        self._stopped = False
        self._claim.take()
        self.recording = self.window.first_warmup == self.window.first_active

    def step(self) -> None:
        """End a step of the window and begin the next one; not for the last.

        Raises:
            CaptureError: Another profiler took the session. This object is of no use any more.
        """
        self._check_session()
        self._profile.step()
        self._claim.take()
        self.recording = self._profile.step_num >= self.window.first_active

    def stop(self) -> None:
        """End the step in progress and the recording.

        Raises:
            CaptureError: Another profiler took the session. This object is of no use any more.
        """
        self._check_session()
        self._stopped = True
        self._profile.stop()

    def make_folder(self, private_dir: Path) -> Path:
        """Make a new folder below `private_dir` for the raw trace.

        Raises:
            OSError: It cannot be made.
        """
        private_dir.mkdir(mode=0o700, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{self.window.first_active:06d}-", dir=private_dir))

    def export(self, folder: Path) -> None:
        """Write the raw trace into a folder from `make_folder`, as `RAW_NAME`. Holds the GIL.

        Raises:
            CaptureError: torch wrote nothing; it does not say why.
        """
        path = folder / RAW_NAME
        if _PATH_KINETO_GETS_RIGHT.fullmatch(str(path)):
            self._profile.export_chrome_trace(str(path))
        else:
            self._export_by_descriptor(folder)
        if not (path.exists() and path.stat().st_size > 0):
            raise CaptureError(f"torch.profiler wrote no trace to {path}", hint="is the disk full, or the folder gone?")

    def release(self) -> None:
        """Let go of the session and of all that torch holds; to be called last, whatever happened.

        Never raises. What is still recording then is lost.
        """
        with suppress(Exception):
            if not self._stopped and self._claim.is_ours(recording=self.recording):
                self._profile.stop()
        self._claim.release()
        # The object holds itself by its table of actions: its events would stay until a garbage collection.
        vars(self._profile).clear()

    def _check_session(self) -> None:
        if not self._claim.is_ours(recording=self.recording):
            raise CaptureError(
                "another torch profiler was used inside the capture window, which is lost",
                hint="a process has only one profiler: use yours outside the windows, or the recipe `off`",
            )

    def _export_by_descriptor(self, folder: Path) -> None:
        # kineto turns `\\` into `/` and puts `"` unescaped into the file, so it must not see such a path.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._profile.export_chrome_trace(f"/proc/self/fd/{descriptor}/{RAW_NAME}")
        finally:
            os.close(descriptor)


def _action(window: Window, step: int) -> ProfilerAction:
    # torch asks for step 0 when the object is built: it gets what the first step gets.
    step = max(step, window.first_warmup)
    if step < window.first_active:
        return ProfilerAction.WARMUP
    return ProfilerAction.RECORD if step < window.last_active else ProfilerAction.RECORD_AND_SAVE


def device_in_use() -> str:
    """`cuda` where this process has begun to use CUDA, else `cpu`; does not begin to use it."""
    return "cuda" if torch.cuda.is_initialized() else "cpu"  # type: ignore[no-untyped-call]


def _activities(options: ProfileOptions, device_type: str | None) -> list[ProfilerActivity]:
    activities = [ProfilerActivity.CPU]
    device_type = device_type or device_in_use()
    if "cuda" in options.activities and device_type == "cuda" and torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    return activities


def _experimental_config(options: ProfileOptions) -> torch._C._profiler._ExperimentalConfig | None:
    """Nobody asks the object for events, so torch need not build them when it stops: a third less time."""
    if options.with_stack:  # torch needs them for the stacks
        return None
    try:
        return torch._C._profiler._ExperimentalConfig(trace_only=True)
    except TypeError:  # a torch that has no such option
        return None
