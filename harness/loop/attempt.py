"""What one attempt runs on: manifest, files, threads and the profiler, opened in order and closed whatever happens."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from harness.capture.finisher import FinishedTrace
from harness.capture.system import SystemSample, SystemSampler
from harness.capture.torch_window import device_in_use
from harness.capture.window import Capture
from harness.errors import HarnessError
from harness.loggers.base import Progress, RunInfo
from harness.loggers.fanout import LogFanout
from harness.loggers.writer import WriterThread
from harness.loop.cost import OwnCost, account
from harness.loop.parts import Checked, static_fields
from harness.loop.plan import Plan
from harness.loop.saving import Saver
from harness.naming.template import Template
from harness.report.summary import summarise
from harness.run.append_file import AppendFile, cut_lines_after
from harness.run.durable import remove_leftovers, write_atomically
from harness.run.manifest import RunFacts
from harness.run.manifest_file import EndStatus, ManifestFile
from harness.run.provenance import git_state, versions
from harness.timeline.phases import BETWEEN, CAPTURE, CHECKPOINT
from harness.timeline.step_file import StepFile
from harness.trace.steps import read_steps
from harness.units import NS_PER_S

if TYPE_CHECKING:
    from harness.loop.session import Session

_log = logging.getLogger(__name__)
HEARTBEAT_NS = 5 * NS_PER_S
"""How old `run.json` may be while the run goes."""


class Attempt:
    """The open parts of a session; made by `open`, ended by `close`."""

    def __init__(self, session: Session, checked: Checked, manifest: ManifestFile, resumed_step: int | None) -> None:
        options, directory = session.options, session.directory
        self._session = session
        self._checked = checked
        self._plan: Plan | None = None
        self._speed = _Speed()
        self._heartbeat_ns = time.monotonic_ns()
        self._resumed_step = resumed_step
        self.manifest = manifest
        self._fields = static_fields(directory.run_name, checked.ranks, self.manifest.attempt)
        remove_leftovers(directory.recipe_path)
        write_atomically(directory.recipe_path, checked.recipe.to_toml().encode())
        self._steps_path = directory.steps_path(checked.ranks.rank)
        if directory.resumed:
            cut_lines_after(self._steps_path, session.timestamp.batch)
        self._steps_file = AppendFile(self._steps_path)
        self.step_file = StepFile(session.recorder, self._steps_file.write, first_step=session.timestamp.batch + 1)
        session.recorder.on_overflow = self.step_file.drain
        self.writer = WriterThread()
        self.writer.add("steps", self.step_file.drain)
        self.writer.add("manifest", self._tick)
        self.fanout = LogFanout(checked.loggers, self.writer, progress=self._progress)
        self._system_interval_s = (
            checked.recipe.system.interval_s,
            checked.recipe.system.window_interval_s,
        )
        self.sampler = SystemSampler(interval_s=self._system_interval_s[0], on_sample=self._on_sample)
        self.capture = self._make_capture()
        self.saver = Saver(
            options,
            checked.checkpoint_paths,
            session.timestamp,
            directory=directory,
            fields=self._fields,
            manifest=self.manifest,
            say=self.fanout.log_text,
            flush=self.writer.flush,
        )

    @classmethod
    def open(cls, session: Session, checked: Checked) -> Attempt:
        """Write the manifest, open the loggers and start the threads.

        Raises:
            HarnessError: The disk refuses, or a logger cannot be opened; the manifest then says `failed`.
        """
        directory, resumed = session.directory, session.resumed
        resumed_step = resumed.step if resumed is not None else None
        manifest = ManifestFile.start(
            directory.manifest_path,
            _facts(session, checked),
            resumed=directory.resumed,
            resumed_from_step=resumed_step or (0 if directory.resumed else None),
            guard=directory.check_in_place,
        )
        try:
            attempt = cls(session, checked, manifest, resumed_step)
            attempt.fanout.open(attempt._run_info())
            if session.options.config:
                attempt.fanout.log_params(session.options.config)
        except BaseException as error:
            with contextlib.suppress(HarnessError):  # the disk that refused the files may refuse this too
                manifest.end_attempt("failed", _one_line(error))
            raise
        attempt.capture.salvage()
        attempt.writer.start()
        attempt.sampler.start()
        return attempt

    def start_capture(self, next_step: int) -> None:
        """Plan the capture windows from this step on; opens one that begins with it."""
        self.capture.start(next_step)
        self._session.recorder.annotator = self.capture.annotator

    def end_captured_step(self, step: int) -> None:
        """A step inside or next to a window is over."""
        state = self.capture.on_step_end(step)
        if state != "off":
            self.step_file.note_capture(step, state)
        self._session.recorder.annotator = self.capture.annotator

    def show_progress_of(self, plan: Plan) -> None:
        """Progress is shown against this plan from now on."""
        self._plan = plan

    def close(self, status: EndStatus, error: BaseException | None, *, in_step: bool) -> None:
        """Write everything out. What goes wrong here is said and counted, and never hides `error`.

        Args:
            status: How the attempt ended.
            error: Why it did not end well.
            in_step: Whether `error` left a step half done: then what was trained is not worth a checkpoint.

        Raises:
            HarnessError: The end of a run that had not failed could not be written down.
        """
        failures: list[Exception] = []
        guard = partial(_guarded, failures)
        guard("the run", self._session.directory.check_in_place)
        if error is None or (isinstance(error, Exception) and not in_step):
            guard("the last checkpoint", partial(self._saving, self.saver.save_last))
        guard("the checkpoint under way", partial(self._saving, self.saver.finish))
        self._session.recorder.annotator = None
        self._session.recorder.mark(CAPTURE)
        self.capture.cut(_cut_reason(status, error, self._session.stop_reason))
        self._session.recorder.mark(BETWEEN)
        guard("the traces", self._wait_for_traces)
        guard("the system sampler", self.sampler.close)
        self.fanout.commit(self._session.timestamp.batch)
        if error is not None:
            self.fanout.log_text(f"{status}: {_one_line(error)}")
        guard("the loggers", self.fanout.close)
        if error is None:
            guard("the loggers", self.fanout.raise_failure)
        guard("the writer thread", self.writer.close)
        guard("the step file", partial(self.step_file.drain, final=True))
        guard("the step file", self._steps_file.close)
        guard("the run's account", self._write_account)
        self.manifest.set_progress(self._session.timestamp.batch, self._session.timestamp.epoch)
        reason = error or (failures[0] if failures else None)
        text = _one_line(reason) if reason is not None else None
        end_status = "failed" if failures and status == "finished" else status
        guard("run.json", lambda: self.manifest.end_attempt(end_status, text))
        if failures and error is None:
            raise failures[0]

    def give_up(self, reason: str) -> None:
        """Note that the process ends now, without closing anything. From any thread.

        Raises:
            HarnessError: It could not be written.
        """
        self.manifest.set_progress(self._session.timestamp.batch, self._session.timestamp.epoch)
        self.manifest.end_attempt("interrupted", reason)

    def _saving(self, action: Callable[[], None]) -> None:
        self._session.recorder.mark(CHECKPOINT)
        try:
            action()
        finally:
            self._session.recorder.mark(BETWEEN)

    def _wait_for_traces(self) -> None:
        self._list_traces(self.capture.wait(on_progress=lambda line: _log.info("%s", line)))

    def _write_account(self) -> None:
        cost = self.own_cost()
        if cost.steps_ns:  # an attempt that trained nothing keeps the account of the one before
            self.manifest.set_own_cost(cost.to_dict(), own_cost_pct=cost.training_thread_pct)
        self.manifest.set_health(self.health())
        self.manifest.set_device(self._session.options.device or device_in_use())
        summary = summarise(read_steps(self._steps_path))
        self.manifest.set_step_times(median_step_us=summary.median_step_us, p95_step_us=summary.p95_step_us)

    def own_cost(self) -> OwnCost:
        """What the harness has cost up to the last drained step."""
        return account(
            self.step_file.totals,
            threads_cpu_ns={
                "writer": self.writer.cpu_ns,
                "system": self.sampler.cpu_ns,
                "checkpoint": self.saver.cpu_ns,
            },
            children_cpu_ns={"traces": int(self.capture.health()["child_cpu_ns"])},
        )

    def health(self) -> dict[str, object]:
        """How the parts fared, for `run.json`."""
        return {
            "loggers": {name: asdict(health) for name, health in self.fanout.health().items()},
            "writer": {name: asdict(health) for name, health in self.writer.health().items()},
            "sampler": asdict(self.sampler.health),
            "steps_file": asdict(self._steps_file.health),
            "capture": self.capture.health(),
            "checkpoints": self.saver.health(),
        }

    def _make_capture(self) -> Capture:
        session, facts = self._session, self._checked.ranks
        artifacts = self.manifest.snapshot().artifacts
        earlier = [artifact for artifact in artifacts if artifact.kind == "trace"]
        return Capture(
            self._checked.recipe,
            run_name=session.run_name,
            rank=facts.rank,
            world_size=facts.world_size,
            local_rank=facts.local_rank,
            private_dir=session.directory.make_private_dir(),
            trace_path=self._trace_path,
            system_samples=self.sampler.samples,
            device_type=session.options.device.partition(":")[0] if session.options.device else None,
            on_window=self._on_window,
            attempt=self.manifest.attempt,
            traces_before=len(earlier),
            bytes_before=sum(artifact.size_bytes for artifact in earlier),
        )

    def _trace_path(self, first_step: int) -> Path:
        self._session.directory.check_in_place()
        fields = {"batch": first_step, "step": first_step}
        return self._session.directory.resolve(self._format(self._session.options.trace_template, fields))

    def _format(self, template: Template, fields: Mapping[str, int | str] | None = None) -> str:
        return template.format({**self._session.timestamp.fields(), **self._fields, **(fields or {})})

    def _on_window(self, opened: bool) -> None:
        self.sampler.set_interval(self._system_interval_s[opened])

    def _on_sample(self, sample: SystemSample) -> None:
        self.fanout.log_system(self._session.timestamp.batch, sample.values, time_ns=sample.time_ns)

    def _tick(self) -> None:
        """Writer's job: list finished traces, and keep `run.json` young."""
        finished = self.capture.poll()
        self._list_traces(finished)
        now_ns = time.monotonic_ns()
        if finished or now_ns - self._heartbeat_ns >= HEARTBEAT_NS:
            self._heartbeat_ns = now_ns
            self.manifest.set_progress(self._session.timestamp.batch, self._session.timestamp.epoch)
            self.manifest.save()

    def _list_traces(self, finished: list[FinishedTrace]) -> None:
        for trace in finished:
            if trace.ok:
                path = self._session.directory.relative(trace.path)
                self.manifest.add_artifact("trace", path, size_bytes=trace.size_bytes, step=trace.first_step)

    def _progress(self, metrics: Mapping[str, float]) -> Progress | None:
        plan, ts = self._plan, self._session.timestamp
        if plan is None:
            return None
        return Progress(
            step=ts.batch,
            epoch=ts.epoch,
            fraction=plan.limit.fraction(ts, plan.batches_per_epoch),
            steps_per_s=self._speed.update(ts.batch),
            metrics=metrics,
            total=str(plan.limit.duration),
        )

    def _run_info(self) -> RunInfo:
        directory, ranks = self._session.directory, self._checked.ranks
        return RunInfo(
            run_name=directory.run_name,
            root=directory.root,
            directory=directory.path,
            rank=ranks.rank,
            world_size=ranks.world_size,
            attempt=self.manifest.attempt,
            started=self.manifest.started,
            resumed_step=self._resumed_step,
            max_duration=None,
            path=directory.resolve,
            format=self._format,
        )


class _Speed:
    """Steps per second, smoothed over some seconds."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None
        self._value: float | None = None

    def update(self, step: int) -> float | None:
        now_ns = time.monotonic_ns()
        if self._last is None:
            self._last = (now_ns, step)
        elapsed_ns = now_ns - self._last[0]
        if elapsed_ns >= NS_PER_S // 2:
            recent = (step - self._last[1]) * NS_PER_S / elapsed_ns
            self._value = recent if self._value is None else 0.7 * self._value + 0.3 * recent
            self._last = (now_ns, step)
        return self._value


def _facts(session: Session, checked: Checked) -> RunFacts:
    return RunFacts(
        run_name=session.run_name,
        name_source=checked.name.source,
        argv=sys.argv,
        pid=os.getpid(),
        host=gethostname(),
        cwd=str(Path.cwd()),
        config=session.options.config,
        recipe=checked.recipe.to_dict(),
        versions=versions(),
        git=_git(),
        device=session.options.device or device_in_use(),
        world_size=checked.ranks.world_size,
        rank=checked.ranks.rank,
        parent=session.parent,
    )


def _git() -> dict[str, object] | None:
    state = git_state(Path.cwd())
    return asdict(state) if state is not None else None


def _guarded(failures: list[Exception], what: str, action: Callable[[], object]) -> None:
    """One part's failure must not keep the others from being written."""
    try:
        action()
    except Exception as error:
        _log.warning("closing %s failed: %s", what, error)
        failures.append(error)


def _cut_reason(status: EndStatus, error: BaseException | None, stop_reason: str | None) -> str:
    if error is not None:
        return f"{type(error).__name__} in training" + (f", after {stop_reason}" if stop_reason else "")
    return f"stopped: {stop_reason}" if stop_reason else f"end of training ({status})"


def _one_line(error: BaseException) -> str:
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    text = " ".join(f"{error}{notes}".split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
