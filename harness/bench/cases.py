"""One measurement in this process: builds the workload twice and lets the bare and the measured loop take turns."""

from __future__ import annotations

import importlib
import itertools
import resource
import sys
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.bench.interleaved import InterleavingLoader, TrainedParts, settle_garbage, trimmed_mean
from harness.bench.material import first_batches, twin_of
from harness.bench.measured import Measured
from harness.bench.spec import IDLE, CaseResult, CaseSpec, Ledger, Loop
from harness.capture.recipe import Recipe
from harness.capture.schedule import Schedule
from harness.loop.attempt import Attempt
from harness.loop.cost import OwnCost
from harness.loop.session import session
from harness.timeline.phases import LOOP
from harness.trace.steps import read_steps
from harness.trainer.batch import forward_for, loss_for
from harness.trainer.callback import Callback
from harness.trainer.setup import seed_everything
from harness.trainer.trainer import Trainer
from harness.units import Duration, DurationUnit
from harness.workloads.load import load_workload

RUN_NAME = "bench"
_NEVER = 1_000_000_000
_LONG_STEP_US = 10_000
_WINDOWS = Schedule(wait=12, warmup=2, active=10, repeat=0)


def run_case(spec: CaseSpec, root: Path) -> CaseResult:
    """Measure one case. Sets torch to one thread, freezes the garbage of before: meant for a process of its own.

    Args:
        spec: What to measure.
        root: An empty folder; the measured run is written into it as `bench`.

    Raises:
        HarnessError: The workload or an option of the case cannot work.
    """
    torch.set_num_threads(1)
    case = _Case(spec)
    settle_garbage()
    attempt = _LOOPS[spec.loop](case, root)
    window_step_us = case.loader.paused_step_us()
    cost = attempt.own_cost() if attempt is not None else None
    measured = case.loader.result()
    if cost is not None:
        measured = case.loader.result(clocked_ns=_clocked_ns(cost, measured.bare_us))
    return CaseResult(
        measured=measured,
        ledger=_ledger(attempt, case, measured, root) if attempt is not None else None,
        same_weights=case.bare.same_weights_as(case.subject) if window_step_us is None else None,
        window_step_us=window_step_us,
        save_us=attempt.saver.held_us if attempt is not None else None,
        window=case.loader.paused(),
        apart=case.loader.apart(),
        health=attempt.health() if attempt is not None else {},
        written_bytes=sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink()),
        max_rss_bytes=_max_rss_bytes(),
    )


class _Case:
    """What the loops need, made before anything is measured."""

    def __init__(self, spec: CaseSpec) -> None:
        seed_everything(spec.seed)
        workload = load_workload(spec.workload, spec.workload_options)
        batches = first_batches(workload.train_dataloader)
        model, twin = workload.model.train(), twin_of(workload.model, spec.workload).train()
        self.spec = spec
        self.num_steps = spec.warmup_steps + spec.num_steps
        self.recipe = _recipe(spec.profile)
        self.subject, self.bare = (
            TrainedParts(
                model=each,
                optimizer=workload.optimizer(each),
                loss=loss_for(each, workload.loss_fn),
                forward=_forward(each, batches[0]),
            )
            for each in (model, twin)
        )
        self.loader = InterleavingLoader(
            self.bare,
            itertools.cycle(batches),
            warmup_steps=spec.warmup_steps,
            pauses=self._pauses(),
            apart=self._apart(),
        )
        self.get_num_samples, self.get_num_tokens = workload.get_num_samples, workload.get_num_tokens
        self.metrics = _metrics(spec)

    def options(self, root: Path) -> dict[str, Any]:
        """Keywords that session and Trainer both take."""
        spec = self.spec
        return {
            "run_name": RUN_NAME,
            "root": root,
            "loggers": list(spec.loggers),
            "log_interval": spec.log_interval,
            "profile": self.recipe,
            "save_interval": spec.save_interval,
            **spec.trainer_options,
        }

    def _apart(self) -> Set[int]:
        """Steps with which a window ends, or after which a checkpoint is saved."""
        apart: set[int] = set()
        if self.recipe is not None and self.recipe.schedule is not None and self.spec.profile != IDLE:
            windows = itertools.takewhile(lambda one: one.last_active <= self.num_steps, self.recipe.schedule.windows())
            apart.update(window.last_active for window in windows)
        if self.spec.save_interval is not None:
            every = Duration.parse(self.spec.save_interval, option="save_interval")
            if every.unit is DurationUnit.BATCH:
                apart.update(range(int(every.value), self.num_steps + 1, int(every.value)))
        return apart

    def _pauses(self) -> Callable[[], bool] | None:
        """Whether the next step is in a window or next to one, for a recipe whose windows come."""
        if self.recipe is None or self.spec.profile == IDLE or self.recipe.schedule is None:
            return None
        states = _states(self.recipe.schedule)
        return lambda: next(states)


def _states(schedule: Schedule) -> Iterator[bool]:
    step = 1
    for window in schedule.windows():
        while step <= window.last_active + 1:
            yield window.state(step) in ("warmup", "active")
            step += 1


def _recipe(profile: str | None) -> Recipe | None:
    if profile is None:
        return None
    if profile == IDLE:
        return Recipe(name=IDLE, schedule=Schedule(skip_first=_NEVER, active=1))
    recipe = Recipe.load(profile)
    if recipe.schedule is None:
        return recipe
    # Many short windows, so that they all lie in the steps that are counted and none is lost to the budget.
    return replace(recipe, schedule=_WINDOWS, budget=replace(recipe.budget, max_traces=_NEVER))


def _metrics(spec: CaseSpec) -> dict[str, float | Tensor]:
    values = {f"scalar{index}": 0.1234567 * (index + 1) for index in range(spec.num_scalars or 0)}
    return {name: torch.tensor(value) if spec.tensors else value for name, value in values.items()}


def _run_bare(case: _Case, _root: Path) -> None:
    parts, num_steps = case.subject, case.num_steps
    model, loss_of, optimizer = parts.forward or parts.model, parts.loss, parts.optimizer
    takes_first = parts.forward is None
    for number, batch in enumerate(case.loader, start=1):
        inputs = batch[0] if takes_first and isinstance(batch, (tuple, list)) else batch
        loss = loss_of(model(inputs), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if number == num_steps:
            break


def _run_session(case: _Case, root: Path) -> Attempt:
    parts, metrics = case.subject, case.metrics
    model, loss_of, optimizer = parts.forward or parts.model, parts.loss, parts.optimizer
    takes_first = parts.forward is None
    state = {"model": parts.model, "optimizer": optimizer}
    with session(state=state, **case.options(root)) as run:
        for batch in run.steps(
            case.loader,
            max_duration=f"{case.num_steps}ba",
            get_num_samples=case.get_num_samples,
            get_num_tokens=case.get_num_tokens,
        ):
            with run.phase("forward"):
                inputs = batch[0] if takes_first and isinstance(batch, (tuple, list)) else batch
                loss = loss_of(model(inputs), batch)
            with run.phase("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            with run.phase("optimizer"):
                optimizer.step()
                optimizer.zero_grad()
            if metrics:
                run.log(metrics)
    return run.attempt


def _run_trainer(case: _Case, root: Path) -> Attempt:
    trainer = Trainer(
        model=case.subject.model,
        train_dataloader=case.loader,
        max_duration=f"{case.num_steps}ba",
        loss_fn=case.subject.loss,
        optimizers=case.subject.optimizer,
        device="cpu",
        callbacks=_callbacks(case),
        get_num_samples=case.get_num_samples,
        get_num_tokens=case.get_num_tokens,
        **case.options(root),
    )
    trainer.fit()
    return trainer.session.attempt


_LOOPS: dict[Loop, Callable[[_Case, Path], Attempt | None]] = {
    "bare": _run_bare,
    "session": _run_session,
    "trainer": _run_trainer,
}


def _forward(model: nn.Module, batch: Any) -> Callable[[Any], Any] | None:
    """How the model is called, where it is not simply with the batch or its first item."""
    forward = forward_for(model)
    return None if isinstance(batch, (Tensor, tuple, list)) and forward is not model else forward


def _callbacks(case: _Case) -> list[Callback]:
    if case.spec.callback is None:
        return []
    module, _, name = case.spec.callback.partition(":")
    found: Callback = getattr(importlib.import_module(module), name)()
    return [found]


def _clocked_ns(cost: OwnCost, bare_us: float) -> int:
    """CPU time of threads that work by the clock.

    The sampler does. The writer's tick costs half a millisecond and a step less than ten microseconds, so that on long
    steps nearly all that it does goes by the clock too.
    """
    return cost.threads_cpu_ns["system"] + (cost.threads_cpu_ns["writer"] if bare_us > _LONG_STEP_US else 0)


def _ledger(attempt: Attempt, case: _Case, measured: Measured, root: Path) -> Ledger:
    cost, num_steps = attempt.own_cost(), case.num_steps
    clocked_ns = _clocked_ns(cost, measured.bare_us)
    threads_ns = sum(cost.threads_cpu_ns.values()) - clocked_ns * (1 - measured.measured_share)
    steps = read_steps(root / RUN_NAME / "steps-rank0.jsonl")
    is_typical = (steps.step > case.spec.warmup_steps) & (steps.capture == 0)
    between_us = attempt.step_file.totals.between_ns[LOOP] / num_steps / 1e3
    return Ledger(
        typical_thread_us=trimmed_mean(steps.phases["harness"][is_typical]) + float(between_us),
        thread_us=sum(cost.training_thread_ns.values()) / num_steps / 1e3,
        background_us=threads_ns / num_steps / 1e3,
        children_us=sum(cost.children_cpu_ns.values()) / num_steps / 1e3,
    )


def _max_rss_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
