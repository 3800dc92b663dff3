"""The hot path: one generator that every training step passes through, whoever wrote the loop.

What it does in a step is fixed when the iteration starts: hooks are bound to tuples, intervals that are not asked for
are None, and the capture is one comparison of integers.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from harness.checkpoint.position import EpochStart, open_epoch
from harness.checkpoint.rng import collect_rng, restore_rng
from harness.errors import DataError
from harness.loop.plan import Plan
from harness.timeline.phases import BETWEEN, CALLBACKS, CAPTURE, CHECKPOINT, LOGGERS, LOOP, STEP_BEGIN, STEP_END
from harness.units import DurationUnit

if TYPE_CHECKING:
    from harness.loop.attempt import Attempt
    from harness.loop.resume import Resumed
    from harness.loop.session import Session

_ROLL_MASK = 255
"""Whether a block is full is looked at every 256 steps."""
WORKER_DIED = "a DataLoader worker died"
_COUNTED = (DurationUnit.SAMPLE, DurationUnit.TOKEN)


class Stepper:
    """Runs a plan.

    Args:
        session: Whose hooks are called and whose counts are kept.
        attempt: What the steps are written to.
        plan: What to iterate, and for how long.
    """

    def __init__(self, session: Session, attempt: Attempt, plan: Plan) -> None:
        self.in_step = False
        self._session = session
        self._attempt = attempt
        self._plan = plan
        self._ts = session.timestamp
        self._recorder = session.recorder
        self._limit = plan.limit
        self._fanout = attempt.fanout
        self._capture = attempt.capture
        self._save_every = plan.save_every
        self._log_every = plan.log_every
        every = session.options.log_every
        self._log_steps = int(every.value) if every.unit is DurationUnit.BATCH else 0
        self._left: tuple[Any] | None = None
        self._iterator: weakref.ref[Generator[Any, None, None]] | None = None
        self._step_hooks: tuple[Any, ...] = ()
        self._has_rare_work = True

    def iterate(self) -> Iterator[Any]:
        """Yield batches until the limit is reached or somebody asks to stop."""
        iterator = self._iterate()
        # Weak: a loop that is left by `break` lets go of its iterator, which ends the step at once.
        self._iterator = weakref.ref(iterator)
        return iterator

    def _iterate(self) -> Generator[Any, None, None]:
        session, ts, limit = self._session, self._ts, self._limit
        self._start()
        while not (limit.reached(ts) or session.stop_reason):
            try:
                ended = yield from self._epoch(self._open_epoch())
            except BaseException as error:
                if self._recorder.waits_for_data:
                    self._recorder.abort_step()
                    why = self._while_loading(error)
                    if why is not error:
                        raise why from error
                raise
            # A limit may stand where the epoch ends: then nobody asks the dataloader for one more batch.
            if ended or (session.stop_reason is None and ts.batch_in_epoch == self._plan.batches_per_epoch):
                self._end_epoch()
        if session.dead_workers.error is not None and session.stop_reason == WORKER_DIED and not limit.reached(ts):
            raise self._while_loading(session.dead_workers.error)
        self._leave(session.stop_reason or "end of training")

    def _leave(self, reason: str) -> None:
        """What comes after the loop is no part of its last window, and whatever is logged there is taken."""
        self._recorder.annotator = None
        self._recorder.mark(CAPTURE)
        self._capture.cut(reason, step_in_progress=False)
        self._recorder.mark(BETWEEN)
        self._session.log_now = True

    def settle(self, *, failed: bool) -> None:
        """Finish or give up a step that the loop's body left with `break` or an exception."""
        iterator = self._iterator() if self._iterator is not None else None
        if iterator is not None:
            iterator.close()  # somebody kept it, so leaving the loop has not
        left, self._left = self._left, None
        if left is None:
            return
        self.in_step = False
        if failed:
            self._recorder.abort_step()
            self._fanout.drop_staged()
            return
        self._recorder.end_suspended_step()
        self._recorder.mark(LOOP)
        (batch,), count_tokens = left, self._plan.count_tokens
        self._ts.end_batch(self._plan.count_samples(batch), 0 if count_tokens is None else count_tokens(batch))
        step = self._ts.batch
        self._do_rare_work(step)
        self._fanout.commit(step)
        if step >= self._capture.next_boundary:
            self._attempt.end_captured_step(step)
        self._save_if_due()
        self._leave("the loop was left")

    def _start(self) -> None:
        ts = self._ts
        self._log_every.start(ts)
        if self._save_every is not None:
            self._save_every.start(ts)
        self._step_hooks = tuple(self._session.step_end_hooks)
        counts = self._limit.duration.unit in _COUNTED
        self._fanout.on_failure = self._on_failure
        self._has_rare_work = bool(self._step_hooks) or self._log_steps != 1 or counts or self._fanout.has_failed
        self._session.log_now = not self._log_steps or (ts.batch + 1) % self._log_steps == 0
        self._fanout.commit(ts.batch)
        saver, loader = self._attempt.saver, self._plan.loader
        if self._session.resumed is None and saver.loader is not loader:
            ts.restart_epoch()  # other data: there is nothing of this epoch to skip
        saver.loader = loader
        saver.on_failure = self._on_failure
        self._attempt.start_capture(ts.batch + 1)

    def _on_failure(self) -> None:
        """From the saving or the writer thread: the step in progress then ends by the way that costs time."""
        self._has_rare_work = True

    def _open_epoch(self) -> Iterator[Any]:
        """Begin the epoch's first step and open the dataloader; what was trained on already is skipped."""
        session, ts = self._session, self._ts
        resumed, session.resumed = session.resumed, None
        self._attempt.step_file.note_epoch(ts.batch + 1, ts.epoch)
        if ts.batch_in_epoch == 0:
            # A checkpoint taken between two epochs: the new one begins with its random numbers.
            if resumed is not None:
                resumed.restore_rng()
            self._run_hooks(session.epoch_start_hooks)
        self._recorder.mark(STEP_BEGIN)
        iterator = self._open_loader(resumed)
        session.dead_workers.take_over()
        return iterator

    def _while_loading(self, error: BaseException) -> BaseException:
        """What kept the batch from coming, with the step it was for."""
        error = self._session.dead_workers.cause_of(error) or error
        error.add_note(f"while the dataloader loaded the batch of step {self._ts.batch + 1}")
        return error

    def _open_loader(self, resumed: Resumed | None) -> Iterator[Any]:
        saver, ts, loader = self._attempt.saver, self._ts, self._plan.loader
        earlier = resumed.position.start if resumed is not None else None
        if ts.batch_in_epoch == 0:
            saver.epoch_start = EpochStart.capture(loader, epoch=ts.epoch, resumed=earlier)
            return open_epoch(loader, saver.epoch_start)
        # In the middle: after a resume, or when `steps` is called again after it was left. The order of the epoch is
        # drawn again from its start; then the random numbers go on from where they are.
        if resumed is None and isinstance(loader, Iterator):
            return loader  # it stands where the loop left it
        saver.epoch_start = earlier or saver.epoch_start
        rng = resumed.content["rng"] if resumed is not None else collect_rng()
        iterator = open_epoch(loader, saver.epoch_start, skip_batches=ts.batch_in_epoch)
        restore_rng(rng)
        return iterator

    def _epoch(self, iterator: Iterator[Any]) -> Generator[Any, None, bool]:  # noqa: C901 - flat on purpose
        """Yield the batches of one epoch; returns whether it ended, or training did before it.

        Flat on purpose: between two steps of training every function that is called for the first time costs about a
        microsecond, because the step has driven it out of the processor's caches.
        """
        recorder, ts, plan, session = self._recorder, self._ts, self._plan, self._session
        mark, capture, fanout = recorder.mark, self._capture, self._fanout
        count_samples, count_tokens = plan.count_samples, plan.count_tokens
        first_phase, last_step, step_limit = session.first_phase, plan.last_step, plan.step_limit
        saves_in_epochs = session.options.save_best is not None or (
            plan.save_every is not None and plan.save_every.unit is not DurationUnit.EPOCH
        )
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                recorder.abort_step()
                return True
            self.in_step = True
            mark(first_phase)
            try:
                yield batch
            except GeneratorExit:
                # The body was left by `break` or by an exception; which of the two, `settle` is told.
                recorder.suspend_step()
                self._left = (batch,)
                raise
            mark(LOOP)
            self.in_step = False
            ts.end_batch(count_samples(batch), 0 if count_tokens is None else count_tokens(batch))
            step = ts.batch
            try:
                if self._has_rare_work:
                    self._do_rare_work(step)
                if fanout.staged:
                    mark(LOGGERS)
                    fanout.commit(step)
                if step >= capture.next_boundary:
                    mark(CAPTURE)
                    self._attempt.end_captured_step(step)
            finally:
                # Also when a hook, a logger or the disk raised: the step itself was done, and is on record.
                mark(STEP_END)
            if saves_in_epochs:
                self._save_if_due()
            if not step & _ROLL_MASK:
                recorder.roll()
            if step >= last_step or session.stop_reason is not None:
                return False
            if step_limit is not None and step_limit.reached(ts):
                return False
            mark(STEP_BEGIN)

    def _do_rare_work(self, step: int) -> None:
        """What most runs do not ask for in every step: hooks, sparse logging."""
        ts, session = self._ts, self._session
        self._attempt.saver.raise_failure()
        self._fanout.raise_failure()
        if self._step_hooks:
            self._run_hooks(self._step_hooks)
        if self._log_steps == 0:
            session.log_now = self._log_every.due(ts)
        elif self._log_steps > 1:
            session.log_now = (step + 1) % self._log_steps == 0
        if step == 1:
            self._check_counts()

    def _save_if_due(self) -> None:
        """Save between two steps: the line of the last one is then on the disk before its checkpoint is."""
        saver = self._attempt.saver
        is_best = saver.takes_best()
        is_due = self._save_every is not None and self._save_every.due(self._ts)
        if is_due or is_best:
            self._recorder.mark(CHECKPOINT)
            saver.save_beside(for_best=not is_due)
        self._recorder.mark(BETWEEN)

    def _end_epoch(self) -> None:
        """Between two steps: count the epoch, then its hooks, then its checkpoint."""
        ts, recorder, attempt = self._ts, self._recorder, self._attempt
        if ts.batch_in_epoch == 0:
            raise DataError(
                f"the dataloader yielded no batch in epoch {ts.epoch + 1}",
                hint="check the dataset's size and drop_last; an iterator that is used up cannot be iterated again",
            )
        ts.end_epoch()
        attempt.saver.epoch_start = None
        log_next = self._session.log_now or (self._log_steps == 0 and self._log_every.due(ts))
        self._session.log_now = True
        self._run_hooks(self._session.epoch_end_hooks)
        self._session.log_now = log_next
        recorder.mark(LOGGERS)
        attempt.fanout.commit(ts.batch)
        self._save_if_due()

    def _run_hooks(self, hooks: Any) -> None:
        self._recorder.mark(CALLBACKS)
        for hook in hooks:
            hook()
        self._recorder.mark(LOOP)

    def _check_counts(self) -> None:
        unit = self._limit.duration.unit
        if unit in _COUNTED and self._ts.value(unit) == 0:
            kind = "samples" if unit is DurationUnit.SAMPLE else "tokens"
            raise DataError(
                f"max_duration={self._limit.duration} counts {kind}, and the first batch has none",
                hint=f"give get_num_{kind}=, a function from a batch to its number of {kind}",
            )
