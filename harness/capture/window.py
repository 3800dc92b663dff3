"""Opens torch.profiler for a few steps of a long run, and leaves nothing of it in between.

A profile object that is kept costs every step; one that is built late costs only its window. `Capture`
follows the recipe's schedule on the run's global step, gives each finished window's raw trace to a child
process, and survives whatever torch.profiler does: a window that goes wrong is counted, and training goes on.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.capture.annotate import PhaseAnnotator
from harness.capture.exclusive import other_profiler
from harness.capture.finisher import RAW_NAME, FinishedTrace, TraceFinisher, remove_folder
from harness.capture.health import WindowHealth
from harness.capture.recipe import Recipe
from harness.capture.schedule import CaptureState, Window
from harness.capture.system import SystemSample
from harness.capture.torch_window import TorchWindow
from harness.capture.trace_file import FinishJob, SystemPoint, write_job
from harness.units import format_bytes

logger = logging.getLogger(__name__)

NEVER = sys.maxsize
"""`next_boundary` where there is nothing left to do."""
WAIT_TIMEOUT_S = 120.0
"""How long `Capture.wait` waits for the last traces."""
_RESULT_NAME = "result.json"


class Capture:
    """The capture windows of one rank.

    All methods belong to the training thread, except `poll` and `wait`. In the loop:

        capture.start(next_step)
        for step in …:
            …                                          # capture.annotator, if any, is told the phases
            if step >= capture.next_boundary:
                state = capture.on_step_end(step)      # last thing in a step
        capture.cut("end of training")

    A raw trace is written to a folder of its own below `private_dir`, the finished one to `trace_path`.

    Args:
        recipe: What to capture and when.
        run_name: Name of the run, for the trace.
        rank: This process.
        world_size: Number of processes.
        private_dir: A folder only the harness uses; torch writes there.
        trace_path: First recorded step to the path of the finished trace; makes the path's folder.
        system_samples: The system samples between two Unix times in ns.
        device_type: Where the run computes, as `torch.device.type`; None where the process computes when a
            window opens. `cuda` also records CUDA activity.
        on_window: Called with True when a window opens, with False when it has closed.
        local_rank: Rank on its machine, for the recipe's rank rule; None means that there is one machine.
        attempt: Which launch of the run this is, for the trace.
        traces_before: Traces that earlier attempts wrote; they count in the budget.
        bytes_before: Their size.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        run_name: str,
        rank: int,
        world_size: int,
        private_dir: Path,
        trace_path: Callable[[int], Path],
        system_samples: Callable[[int, int], list[SystemSample]],
        device_type: str | None,
        on_window: Callable[[bool], None],
        local_rank: int | None = None,
        attempt: int = 1,
        traces_before: int = 0,
        bytes_before: int = 0,
    ) -> None:
        self.annotator: PhaseAnnotator | None = None
        """Not None only inside a window; to be asked for anew after every `on_step_end`."""
        self.next_boundary = NEVER
        """The step whose end needs `on_step_end`: the loop compares its step with this and does no more."""
        self._recipe = recipe
        local_rank = rank if local_rank is None else local_rank
        here = recipe.captures_rank(rank=rank, local_rank=local_rank, world_size=world_size)
        self._schedule = recipe.schedule if here else None
        self._job_facts: dict[str, Any] = {
            "run_name": run_name,
            "rank": rank,
            "world_size": world_size,
            "attempt": attempt,
            "recipe": recipe.name,
        }
        self._private_dir = private_dir.absolute()
        self._trace_path = trace_path
        self._system_samples = system_samples
        self._device_type = device_type
        self._on_window = on_window
        self._traces_before, self._bytes_before = traces_before, bytes_before
        self._finisher = TraceFinisher()
        self._window: TorchWindow | None = None
        self._opened_unix_ns = 0
        self._step = 0
        self._step_after_window = 0
        self._health = WindowHealth()

    def start(self, next_step: int) -> None:
        """Plan the windows from `next_step` on, the step that is about to run; open one that begins with it.

        A window whose warmup begins before `next_step` is left out. To be called again after a `cut`.
        """
        self._step = next_step - 1
        self._plan_after(next_step - 1)

    def on_step_end(self, step: int) -> CaptureState:
        """End `step` for the capture; the last thing in a step, needed only where `step >= next_boundary`.

        Ends the annotator's range first, so that it lies inside its `ProfilerStep`. At the end of a window's
        last step this writes the raw trace, which holds the GIL, and starts the child that finishes it.

        Returns:
            What this step was: inside a window, `adjacent` to one, or `off`.
        """
        self._step = step
        state: CaptureState = "adjacent" if step == self._step_after_window else "off"
        if self._window is not None:
            state = self._window.window.state(step)
            self._end_step_of(self._window, step)
        if self._window is not None:
            self.next_boundary = step + 1
        elif self._plan_after(step) and state == "off":
            state = "adjacent"
        return state

    def cut(self, reason: str, *, step_in_progress: bool = True) -> None:
        """End an open window now and still write its trace; no further one opens until `start`. Never raises.

        To be called instead of `on_step_end` for the run's last step where it is known to be the last, and
        after an exception. A window that had only warmed up is dropped.

        Args:
            reason: Why, for the trace's metadata.
            step_in_progress: False where the last step was ended by `on_step_end` and no other one has begun.
        """
        self.next_boundary = NEVER
        if self._window is not None:
            self._close(self._window, self._step + 1 if step_in_progress else self._step, cut=reason)

    def salvage(self) -> int:
        """Finish the raw traces that a killed attempt of this run left behind; their number.

        To be called once, before `start`, by who holds the run's lock.
        """
        return self._finisher.salvage(self._private_dir)

    def poll(self) -> list[FinishedTrace]:
        """The traces that have been finished since the last call. Any thread."""
        return self._report(self._finisher.poll())

    def wait(
        self, on_progress: Callable[[str], None] | None = None, *, timeout_s: float = WAIT_TIMEOUT_S
    ) -> list[FinishedTrace]:
        """Wait until all traces are finished and return those that `poll` has not returned.

        Args:
            on_progress: Gets a short line about twice a second while there is something to wait for.
            timeout_s: Longest wait; what is not finished then goes on by itself, which is logged.
        """
        return self._report(self._finisher.wait(on_progress, timeout_s=timeout_s))

    def health(self) -> dict[str, Any]:
        """Counts, bytes, times in ns on the training thread, and the first error texts, for run.json."""
        finisher = self._finisher
        return {
            **self._health.to_dict(),
            "traces_written": finisher.traces_written,
            "traces_failed": finisher.traces_failed,
            "traces_pending": finisher.num_pending,
            "trace_bytes": finisher.trace_bytes,
            "child_cpu_ns": finisher.child_cpu_ns,
        }

    def _plan_after(self, step: int) -> bool:
        """Open the window that begins after `step`, or find the next one; True if one opened."""
        window = self._next_window(step)
        if window is not None and window.first_warmup == step + 1:
            if self._may_open(window) and self._open(window):
                self.next_boundary = step + 1
                return True
            window = self._next_window(step + 1)
        if step + 1 == self._step_after_window:
            self.next_boundary = step + 1
        else:
            self.next_boundary = NEVER if window is None else window.first_warmup - 1
        return False

    def _next_window(self, after_step: int) -> Window | None:
        return None if self._schedule is None else self._schedule.next_window(after_step)

    def _may_open(self, window: Window) -> bool:
        budget, finisher = self._recipe.budget, self._finisher
        num_traces = self._traces_before + finisher.traces_written + finisher.num_pending
        size_bytes = self._bytes_before + finisher.trace_bytes
        if budget.is_spent(num_traces=num_traces, size_bytes=size_bytes):
            self._schedule = None
            spent = f"{num_traces} traces of {format_bytes(size_bytes)}"
            limit = f"{budget.max_traces} traces or {format_bytes(budget.max_bytes)}"
            logger.info("no further capture windows: %s reach the recipe's budget of %s", spent, limit)
            return False
        other = other_profiler()
        if other is not None:
            self._health.windows_skipped += 1
            self._health.note("skipped", f"{_steps(window)} are not captured: {other}")
        return other is None

    def _open(self, window: Window) -> bool:
        begin_ns = time.perf_counter_ns()
        opened = None
        try:
            self._on_window(True)
            opened = TorchWindow(window, self._recipe.profile, device_type=self._device_type)
            self._opened_unix_ns = time.time_ns()
            opened.start()
        except Exception as error:
            self._fail(window, error)
            self._forget(opened)
            return False
        self._window = opened
        self.annotator = PhaseAnnotator()
        self._health.windows_opened += 1
        self._health.open_ns += time.perf_counter_ns() - begin_ns
        return True

    def _end_step_of(self, opened: TorchWindow, step: int) -> None:
        if step >= opened.window.last_active:
            self._close(opened, step, cut=None)
            return
        try:
            if self.annotator is not None:
                self.annotator.close()
            opened.step()
        except Exception as error:
            self._fail(opened.window, error)
            self._forget(opened)

    def _close(self, opened: TorchWindow, last_step: int, *, cut: str | None) -> None:
        """Stop and, if anything was recorded, write the raw trace and have it finished."""
        begin_ns, export_ns = time.perf_counter_ns(), 0
        try:
            if self.annotator is not None:
                self.annotator.close()
            opened.stop()
            closed_unix_ns = time.time_ns()
            if last_step >= opened.window.first_active:
                samples = self._system_samples(self._opened_unix_ns, closed_unix_ns)
                export_ns = self._write(opened, last_step, cut, samples)
            else:
                self._health.windows_dropped += 1
        except Exception as error:
            self._fail(opened.window, error)
        self._forget(opened)
        self._health.export_ns += export_ns
        self._health.close_ns += time.perf_counter_ns() - begin_ns - export_ns

    def _write(self, opened: TorchWindow, last_step: int, cut: str | None, samples: list[SystemSample]) -> int:
        """Write the raw trace and have it finished; how long torch took for it, in ns.

        What is to be done with it is written first: a raw trace that is there can be finished, whenever a kill comes.
        """
        final_path = self._trace_path(opened.window.first_active)
        folder = opened.make_folder(self._private_dir)
        job = self._job(opened.window, last_step, cut, folder / RAW_NAME, final_path, samples)
        try:
            write_job(job)
            begin_ns = time.perf_counter_ns()
            opened.export(folder)
        except BaseException:
            remove_folder(folder)
            raise
        export_ns = time.perf_counter_ns() - begin_ns
        self._finisher.add(job)
        return export_ns

    def _job(
        self,
        window: Window,
        last_step: int,
        cut: str | None,
        raw_path: Path,
        final_path: Path,
        samples: list[SystemSample],
    ) -> FinishJob:
        return FinishJob(
            raw_path=str(raw_path),
            final_path=str(final_path),
            result_path=str(raw_path.with_name(_RESULT_NAME)),
            first_step=window.first_active,
            last_step=last_step,
            cut=cut,
            system=[SystemPoint(time_ns=sample.time_ns, values=sample.values) for sample in samples],
            **self._job_facts,
        )

    def _forget(self, opened: TorchWindow | None) -> None:
        """Leave nothing of a window behind, however it ended."""
        self._window = self.annotator = None
        self._step_after_window = self._step + 1
        if opened is not None:
            opened.release()
        try:
            self._on_window(False)
        except Exception as error:
            self._health.note("end", f"end of a capture window: {error}")

    def _fail(self, window: Window, error: Exception) -> None:
        self._health.windows_failed += 1
        kind = type(error).__name__
        self._health.note(kind, f"capture of {_steps(window)} failed: {kind}: {error}")

    def _report(self, finished: list[FinishedTrace]) -> list[FinishedTrace]:
        for trace in finished:
            if not trace.ok:
                self._health.note("trace", f"trace {trace.path.name} failed: {trace.error}")
        return finished


def _steps(window: Window) -> str:
    return f"steps {window.first_active} to {window.last_active}"
