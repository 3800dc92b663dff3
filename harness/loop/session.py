"""A session is one attempt of a run: it owns the directory, and every step of the training loop goes through it.

`harness.session` is for people who keep their own loop; `Trainer` is such a loop. Either way the order in a step is
data → the user's phases → logs → capture; a checkpoint is saved between two steps.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, Unpack

from harness.errors import ConfigError
from harness.loop import parts
from harness.loop.attempt import Attempt
from harness.loop.keywords import SessionKeywords
from harness.loop.loading import describe, load_again, load_before_claim
from harness.loop.options import SessionOptions
from harness.loop.plan import CountFn, Plan, make_plan
from harness.loop.resume import Resumed, find_resume_point
from harness.loop.saving import Saver
from harness.loop.signals import DeadWorkers, StopSignals, undisturbed_by_children
from harness.loop.steps import WORKER_DIED, Stepper
from harness.loop.streams import announce, occupy_closed_streams, say
from harness.loop.timestamp import Timestamp
from harness.run.directory import RunDirectory
from harness.run.manifest import Parent
from harness.run.manifest_file import EndStatus
from harness.timeline.phases import CHECKPOINT, LOGGERS, OTHER, PhaseTable
from harness.timeline.recorder import Phase, Recorder
from harness.units import Duration

_log = logging.getLogger(__name__)
Hook = Callable[[], None]


class Session:
    """One attempt of a run. Made by `harness.session`; use it as a context manager.

    Making it claims the run directory and reads a checkpoint into `state`: on resume the run's newest one, else that of
    `load_path`. Entering it writes the manifest, opens the loggers and starts the background threads; leaving it writes
    everything out, also after an exception. When a signal ended the run, leaving raises KeyboardInterrupt or
    SystemExit(143).

    Args:
        options: What is asked for.

    Raises:
        HarnessError: An option cannot work, or the directory cannot be had. Nothing is left behind then.
    """

    def __init__(self, options: SessionOptions) -> None:
        self.options = options
        self.timestamp = Timestamp()
        self.recorder = Recorder(PhaseTable())
        self.timestamp.last_batch_ns = self.recorder.last_step_ns
        self.epoch_start_hooks: list[Hook] = []
        self.step_end_hooks: list[Hook] = []
        self.epoch_end_hooks: list[Hook] = []
        self.stop_reason: str | None = None
        self.first_phase = OTHER
        """The phase that begins when a step has its batch."""
        self.log_now = True
        """Whether metrics logged in the present step are taken (`log_interval`)."""
        self._checked = parts.check(options)
        self._logging = Phase(self.recorder, LOGGERS)
        # In front of the method of this name: a look-up in a dictionary is no function that a step has made cold.
        self._phases = _Phases(self.recorder)
        self.phase = self._phases.__getitem__  # type: ignore[method-assign,assignment]
        self._signals = StopSignals(grace_s=options.grace_s, on_stop=self._on_signal, on_grace_over=self._on_grace_over)
        self.dead_workers = DeadWorkers(may_raise=lambda: self.recorder.waits_for_data, on_death=self._on_dead_worker)
        self._attempt: Attempt | None = None
        self._stepper: Stepper | None = None
        occupy_closed_streams()
        loaded = load_before_claim(options, self._checked, self.timestamp)
        self.directory: RunDirectory = parts.claim(options, self._checked.name)
        self.resumed: Resumed | None = None
        """What is still to be put back when the first epoch is opened."""
        try:
            fields = parts.static_fields(self.run_name, self._checked.ranks, attempt=0)
            self.resumed = find_resume_point(options, self._checked.checkpoint_paths, self.directory, fields)
            if self.resumed is not None:
                self.resumed.restore(options.state, self.timestamp)
                loaded = None  # a run of this name came up since
            elif self.directory.resumed:
                loaded = load_again(options, self._checked, self.directory, self.timestamp)
            if loaded is not None:
                self.resumed = loaded.resumed
        except BaseException:
            self.directory.release()
            raise
        self.parent: Parent | None = None if loaded is None else loaded.parent
        """The checkpoint that the run starts from, if this attempt has loaded it."""
        self.name_is_generated = self._checked.name.name is None
        if self.name_is_generated:  # nobody could know it otherwise
            announce(f"harness: run {self.run_name} in {self.options.root_path / self.run_name}")

    @property
    def run_name(self) -> str:
        """The run's name, given or generated."""
        return self.directory.run_name

    @property
    def step(self) -> int:
        """The step in progress, or the last one that ended; counted from 1 for the whole run."""
        stepper = self._stepper
        return self.timestamp.batch + (1 if stepper is not None and stepper.in_step else 0)

    @property
    def attempt(self) -> Attempt:
        """What this attempt runs on.

        Raises:
            ConfigError: The session was not entered.
        """
        if self._attempt is None:
            raise ConfigError(
                f"the session of run {self.run_name!r} is not open",
                hint='use it as a context manager: with harness.session("foo") as run:',
            )
        return self._attempt

    def __enter__(self) -> Self:
        if self._attempt is not None:
            raise ConfigError(f"the session of run {self.run_name!r} was opened before", hint="make a new one")
        occupy_closed_streams()
        try:
            self._attempt = Attempt.open(self, self._checked)
        except BaseException:
            self.directory.release()
            raise
        self._tell_of_loading()
        self.timestamp.start_clock()
        if self.options.handle_signals:
            self._signals.install()
        return self

    def _tell_of_loading(self) -> None:
        if self.parent is not None:
            self.log_text(f"started from {describe(self.parent)}")
        elif self.options.load_path is not None:
            line = f"load_path={str(self.options.load_path)!r} is not used: the run goes on from its own checkpoint"
            _log.info("%s", line)
            self.log_text(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            late = self._close(error)
        finally:
            self.dead_workers.restore()
        if late is not None:
            raise late
        if error is None or _is_dead_worker(error):
            self._signals.raise_again()

    def _close(self, error: BaseException | None) -> BaseException | None:
        """Write everything out; what a hook or the disk raised while the last step was ended."""
        with undisturbed_by_children():
            in_step = self._stepper is not None and self._stepper.in_step
            late = self._settle(failed=error is not None)
            cause = error or late
            try:
                self.attempt.close(self._end_status(cause), cause, in_step=in_step and error is not None)
            finally:
                self._signals.restore()
                self.directory.release()
        return late

    def _settle(self, *, failed: bool) -> BaseException | None:
        """End the last step; what a hook or the disk raised in it, as closing has to go on."""
        if self._stepper is not None:
            try:
                self._stepper.settle(failed=failed)
            except BaseException as error:
                return error
        return None

    def _end_status(self, error: BaseException | None) -> EndStatus:
        if isinstance(error, (KeyboardInterrupt, SystemExit)) or self._signals.received is not None:
            return "interrupted"
        return "finished" if error is None else "failed"

    def steps(
        self,
        loader: Iterable[Any],
        max_duration: str | int | Duration,
        *,
        get_num_samples: CountFn | None = None,
        get_num_tokens: CountFn | None = None,
    ) -> Iterator[Any]:
        """Iterate over batches, epoch after epoch, one optimizer step for each, until `max_duration` is reached.

        A resumed run goes on where its checkpoint was taken. A signal or `stop` ends the iteration after the step in
        progress.

        Args:
            loader: Iterated once per epoch.
            max_duration: Of the whole run: `2ep`, `100ba`, `5000sp`, `1000000tok`, `90sec`, `1h30m`; an int is epochs.
            get_num_samples: Batch to number of samples; else the first dimension of its first tensor.
            get_num_tokens: Batch to number of tokens; needed for durations in `tok`.

        Raises:
            ConfigError: The session is not open, the loader cannot be iterated or the duration not counted.
            DataError: The loader yields nothing.
        """
        plan = make_plan(
            loader, max_duration, self.options, get_num_samples=get_num_samples, get_num_tokens=get_num_tokens
        )
        return self.run_plan(plan)

    def run_plan(self, plan: Plan) -> Iterator[Any]:
        """Iterate as `steps` does, over a plan that was checked before."""
        warning = self._checked.recipe.check_reachable(plan.total_steps)
        if warning is not None:
            _log.warning("%s", warning)
            self.log_text(warning)
        if self._stepper is not None:
            self._stepper.settle(failed=False)
        self._stepper = Stepper(self, self.attempt, plan)
        self.attempt.show_progress_of(plan)
        return self._stepper.iterate()

    def phase(self, name: str) -> Phase:
        """A part of the step in progress: `with run.phase("forward"):`.

        Time outside phases is `other`. Phases nest; each nanosecond belongs to the innermost. Training thread only.

        Raises:
            ConfigError: The name has characters a trace label cannot carry, or is reserved.
        """
        return self._phases[name]

    def log(self, metrics: Mapping[str, Any], *, always: bool = False) -> None:
        """Log numbers for the step in progress (`log_interval` permitting), or for the last one between steps.

        Args:
            metrics: Numbers or tensors of one element by name. A tensor on a device is read later, so that the step
                does not wait for it.
            always: Take them in every step, whatever `log_interval` says.

        Raises:
            ConfigError: A name or value cannot be logged.
        """
        if not (self.log_now or always):
            return
        with self._logging:
            (self._attempt or self.attempt).fanout.stage(metrics)
        if self.options.save_best is not None:
            self.saver.offer(metrics)

    def log_text(self, line: str) -> None:
        """Write a line to the text log and to loggers that take text."""
        self.attempt.fanout.log_text(line)

    def stop(self, reason: str) -> None:
        """End training after the step in progress; everything is written out as at the end."""
        if self.stop_reason is None:
            self.stop_reason = reason
            if self._attempt is not None:
                self.log_text(f"stopping: {reason}")

    def save_checkpoint(self) -> None:
        """Save `state` now, after the last step that ended.

        Raises:
            ConfigError: The session is not open or has no `state`.
            CheckpointError: It cannot be written; earlier checkpoints are as they were.
        """
        self.recorder.enter(CHECKPOINT)
        try:
            self.saver.save()
        finally:
            self.recorder.leave()

    @property
    def saver(self) -> Saver:
        """Writes this session's checkpoints."""
        return self.attempt.saver

    def _on_signal(self, number: Any) -> None:
        # Runs between two bytecodes of the training thread: no locks, no logging here.
        again = "" if number is signal.SIGUSR1 else "; once more stops at once"
        say(f"\nharness: {number.name}: finishing the step in progress{again}\n")
        self.stop_reason = number.name

    def _on_grace_over(self) -> None:
        # From another thread, while this one hangs or works: what is on the disk stays, and only `run.json` is told.
        if self._attempt is not None:
            self._attempt.give_up("the grace period was over before everything was written")

    def _on_dead_worker(self) -> None:
        # In a signal handler too.
        self.stop_reason = self.stop_reason or WORKER_DIED


class _Phases(dict[str, Phase]):
    """The phases of a session by name, made when they are first asked for."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __missing__(self, name: str) -> Phase:
        phase = self[name] = Phase(self._recorder, self._recorder.phases.id_of(name))
        return phase


def _is_dead_worker(error: BaseException) -> bool:
    """Whether torch says that a DataLoader worker is gone: a signal to the process group ends them with the run."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def session(run_name: str | None = None, **options: Unpack[SessionKeywords]) -> Session:
    """Name a run and own its directory, around a training loop of your own.

    Example:
        with harness.session("foo", profile="quick") as run:
            for batch in run.steps(loader, max_duration="2ep"):
                with run.phase("forward"):
                    loss = model(batch)
                with run.phase("backward"):
                    loss.backward()
                with run.phase("optimizer"):
                    optimizer.step()
                    optimizer.zero_grad()
                run.log({"loss": loss})

    Args:
        run_name: The run's name; None takes it from the environment or generates one.
        **options: See `harness.loop.options.SessionOptions`.

    Raises:
        HarnessError: An option cannot work, or the directory cannot be had.
    """
    return Session(SessionOptions(run_name=run_name, **options))
