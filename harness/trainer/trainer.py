"""Trainer: the loop most people want, written on top of `session`.

The constructor only checks, builds and claims the run's directory; `fit` reads from top to bottom as what happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn

from harness.errors import ConfigError
from harness.loop.interval import Interval
from harness.loop.keywords import RunKeywords
from harness.loop.options import SessionOptions
from harness.loop.plan import CountFn, Plan, check_loader, make_plan
from harness.loop.session import Session
from harness.timeline.phases import CALLBACKS, EVAL
from harness.trainer.batch import forward_for, loss_for
from harness.trainer.callback import Callback, bind
from harness.trainer.describe import describe
from harness.trainer.evaluation import MetricFn, evaluate
from harness.trainer.finite import FiniteLoss
from harness.trainer.precision import Precision
from harness.trainer.setup import (
    as_list,
    check_numbers,
    check_objects,
    default_optimizer,
    find_device,
    seed_everything,
    stateful,
)
from harness.trainer.state import State
from harness.trainer.train_step import LOSS_NAME, StepParts, TrainStep
from harness.units import Duration, DurationUnit

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

DEFAULT_SAVE_INTERVAL = "1ep"


class Trainer:
    """Trains a model and records the run: one directory named after it, under `runs/`.

    The constructor checks everything, claims the directory and, with `resume` or `load_path`, loads a checkpoint; it
    raises before any work is done.

    Example:
        >>> import torch
        >>> from harness import Trainer
        >>> from harness.models import mnist_model
        >>> images, labels = torch.rand(32, 1, 8, 8), torch.randint(10, (32,))
        >>> loader = torch.utils.data.DataLoader(list(zip(images, labels)), batch_size=8)
        >>> trainer = Trainer(model=mnist_model(num_classes=10), train_dataloader=loader, max_duration="2ep",
        ...                   run_name="my-cool-run-name")
        >>> trainer.fit()
        >>> trainer.state.timestamp.batch
        8

    Args:
        model: Any module; moved to the device. Called as `harness.trainer.batch.forward_for` says.
        train_dataloader: Iterated once per epoch.
        max_duration: `2ep`, `100ba`, `5000sp`, `1000000tok`, `90sec`, `1h30m`; an int is epochs.
        loss_fn: `loss_fn(outputs, batch)` to a scalar; else the model's method `loss(outputs, batch)`.
        optimizers: One or several; None makes `AdamW(lr=1e-3)`.
        schedulers: Learning rate schedules, stepped after each optimizer step, or each epoch.
        step_schedulers: `batch` or `epoch`.
        eval_dataloader: Evaluated every `eval_interval` and at the end.
        eval_interval: How often to evaluate.
        metrics: `metric(outputs, batch)` to a scalar, averaged over samples, by name.
        callbacks: See `Callback`.
        run_name: None takes it from the environment or generates one.
        device: Such as `cpu` or `cuda:0`; None takes CUDA where there is one.
        precision: `fp32`, `amp_bf16` or `amp_fp16`.
        microbatch_size: Samples in one forward; a batch is split and its gradients accumulated.
        grad_clip_norm: Largest norm of the gradient.
        compile: Whether the model's forward is compiled with `torch.compile`.
        seed: Seeds python's, numpy's and torch's generators in the constructor; None leaves them alone.
        nan_policy: `warn` or `stop`, when a loss is not finite.
        get_num_samples: Batch to number of samples; else the first dimension of its first tensor.
        get_num_tokens: Batch to number of tokens.
        config: More settings to record in the manifest and show as hyperparameters, beside the Trainer's own.
        **options: See `harness.loop.options.SessionOptions`. `save_interval` is `1ep` unless given.

    Raises:
        HarnessError: An argument cannot work; its kind and message say which.
    """

    def __init__(
        self,
        model: nn.Module,
        train_dataloader: Iterable[Any],
        *,
        max_duration: str | int | Duration,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        optimizers: Optimizer | Sequence[Optimizer] | None = None,
        schedulers: LRScheduler | Sequence[LRScheduler] | None = None,
        step_schedulers: str = "batch",
        eval_dataloader: Iterable[Any] | None = None,
        eval_interval: str | int | Duration = "1ep",
        metrics: Mapping[str, MetricFn] | None = None,
        callbacks: Sequence[Callback] = (),
        run_name: str | None = None,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        microbatch_size: int | None = None,
        grad_clip_norm: float | None = None,
        compile: bool = False,  # noqa: A002 - torch's word
        seed: int | None = None,
        nan_policy: str = "warn",
        get_num_samples: CountFn | None = None,
        get_num_tokens: CountFn | None = None,
        config: Mapping[str, object] | None = None,
        **options: Unpack[RunKeywords],
    ) -> None:
        check_numbers(microbatch_size, grad_clip_norm, step_schedulers)
        check_objects(model, optimizers, schedulers, callbacks, eval_dataloader=eval_dataloader, metrics=metrics)
        if seed is not None:
            seed_everything(seed)
        found_device = find_device(device)
        model.to(found_device)
        all_schedulers = as_list(schedulers)
        self._parts = StepParts(
            model=model,
            forward=forward_for(model),
            loss=loss_for(model, loss_fn),
            optimizers=as_list(optimizers) if optimizers is not None else [default_optimizer(model)],
            schedulers=all_schedulers if step_schedulers == "batch" else [],
            device=found_device,
            precision=Precision.named(precision, found_device),
            finite=FiniteLoss(nan_policy),
            microbatch_size=microbatch_size,
            grad_clip_norm=grad_clip_norm,
        )
        options.setdefault("save_interval", DEFAULT_SAVE_INTERVAL)
        session_options = SessionOptions(
            run_name=run_name,
            device=str(found_device),
            state=stateful(self._parts, all_schedulers, callbacks),
            config=describe(
                self._parts,
                all_schedulers,
                options,
                max_duration=str(max_duration),
                precision=precision,
                seed=seed,
                compile=compile,
                nan_policy=nan_policy,
                eval_interval=str(eval_interval),
                **(config or {}),
            ),
            **options,
        )
        self._plan = make_plan(
            train_dataloader,
            max_duration,
            session_options,
            get_num_samples=get_num_samples,
            get_num_tokens=get_num_tokens,
        )
        if eval_dataloader is not None:
            check_loader(eval_dataloader, option="eval_dataloader")
        self._eval_every = _eval_interval(eval_interval, self._plan)
        self._eval_dataloader = eval_dataloader
        self._epoch_schedulers = all_schedulers if step_schedulers == "epoch" else []
        self._metrics = dict(metrics or {})
        self._events = bind(callbacks)
        self._evaluated_at = -1
        # Last: nothing is on the disk before everything above has been found good.
        self.session = Session(session_options)
        if compile:
            model.compile()
        self.state = State(
            run_name=self.session.run_name,
            model=model,
            optimizers=self._parts.optimizers,
            schedulers=all_schedulers,
            device=found_device,
            timestamp=self.session.timestamp,
        )

    def fit(self) -> None:
        """Train until `max_duration`. Writes the run directory; see the README for what is in it.

        Raises:
            HarnessError: The data or the loss cannot be trained on, or something could not be written.
            KeyboardInterrupt: Ctrl-C ended the run; everything was written.
            SystemExit: SIGTERM ended the run (143); everything was written.
        """
        session, state = self.session, self.state
        self._add_hooks()
        with session:
            try:
                state.model.train()
                self._call("fit_start")
                train_step = TrainStep(self._parts, session, self, self._events)
                session.first_phase = train_step.first_phase
                session.saver.before_save_hooks.append(self._parts.finite.settle)
                for batch in session.run_plan(self._plan):
                    state.loss = train_step(batch)
                self._parts.finite.settle()
                self._evaluate_at_end()
                self._call("fit_end")
            except BaseException as error:
                self._tell_of(error)
                raise

    def stop(self, reason: str) -> None:
        """End training after the step in progress; everything is written out as at the end."""
        self.session.stop(reason)

    def evaluate(self) -> Mapping[str, float]:
        """Evaluate now. Logs `loss/eval/…` and `metrics/eval/…`.

        Returns:
            The loss and each metric, also in `state.eval_metrics`.

        Raises:
            ConfigError: There is no `eval_dataloader`.
            DataError: It yields nothing.
        """
        if self._eval_dataloader is None:
            raise ConfigError("evaluate without eval_dataloader", hint="give eval_dataloader= to Trainer")
        recorder = self.session.recorder
        self._call("eval_start")
        recorder.enter(EVAL)
        try:
            results = evaluate(
                self.state.model,
                self._eval_dataloader,
                forward=self._parts.forward,
                loss=self._parts.loss,
                metrics=self._metrics,
                device=self._parts.device,
                precision=self._parts.precision,
            )
        finally:
            recorder.leave()
        self._evaluated_at = self.state.timestamp.batch
        self.state.eval_metrics = results
        logged = {f"metrics/eval/{name}": value for name, value in results.items() if name != "loss"}
        self.session.log({"loss/eval/total": results["loss"], **logged}, always=True)
        self._call("eval_end")
        return results

    def _add_hooks(self) -> None:
        """Ask the session to be called only where there is something to do."""
        session = self.session
        if self._events["epoch_start"]:
            session.epoch_start_hooks.append(lambda: self._call("epoch_start"))
        if self._events["batch_end"]:
            session.step_end_hooks.append(lambda: self._call("batch_end"))
        best = session.options.best
        if best is not None and best.metric == LOSS_NAME:
            # Its own loss does not pass through `session.log`. A number on a device is waited for then.
            session.step_end_hooks.append(lambda: session.saver.offer({LOSS_NAME: self.state.loss}))
        if self._epoch_schedulers:
            session.epoch_end_hooks.append(self._step_schedulers)
        if self._eval_dataloader is not None:
            self._eval_every.start(self.state.timestamp)
            hooks = session.epoch_end_hooks if self._eval_every.unit is DurationUnit.EPOCH else session.step_end_hooks
            hooks.append(self._evaluate_if_due)
        if self._events["epoch_end"]:
            session.epoch_end_hooks.append(lambda: self._call("epoch_end"))

    def _evaluate_if_due(self) -> None:
        if self._eval_every.due(self.state.timestamp):
            self.evaluate()

    def _evaluate_at_end(self) -> None:
        """The last state is always evaluated, once, unless training was interrupted."""
        done = self._evaluated_at == self.state.timestamp.batch
        if self._eval_dataloader is not None and not done and self.session.stop_reason is None:
            self.evaluate()

    def _tell_of(self, error: BaseException) -> None:
        """Call `on_exception`; a callback that raises in it hides neither the error nor the other callbacks."""
        for handler in self._events["on_exception"]:
            try:
                handler(self, error)
            except Exception as second:
                error.add_note(f"on_exception of a callback raised too: {type(second).__name__}: {second}")

    def _step_schedulers(self) -> None:
        for scheduler in self._epoch_schedulers:
            scheduler.step()

    def _call(self, event: str, *args: Any) -> None:
        handlers = self._events[event]
        if handlers:
            self.session.recorder.enter(CALLBACKS)
            try:
                for handler in handlers:
                    handler(self, *args)
            finally:
                self.session.recorder.leave()


def _eval_interval(eval_interval: str | int | Duration, plan: Plan) -> Interval:
    every = Duration.parse(eval_interval, option="eval_interval", fraction=True)
    return Interval(every, plan.limit.duration, option="eval_interval", batches_per_epoch=plan.batches_per_epoch)
