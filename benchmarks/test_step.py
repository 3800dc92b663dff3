"""What a step costs more with the harness than in a bare loop. Budgets: issue text and README.

make benchmark
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from interleaved import Added, AlternatingLoader, TinyStep, measure

import harness
from harness.capture.recipe import Recipe
from harness.capture.schedule import Schedule

NUM_STEPS = 5000
IDLE = Recipe(name="idle", schedule=Schedule(skip_first=1_000_000_000, active=1))


def _background_ns(session: Any) -> int:
    return sum(session.attempt.own_cost().threads_cpu_ns.values())


def _session(root: Path, num_scalars: int = 0, **options: Any) -> Any:
    def run(subject: TinyStep, loader: AlternatingLoader, num_steps: int) -> int:
        names = [f"scalar{i}" for i in range(num_scalars)]
        with harness.session("bench", root=root, **options) as session:
            for batch in session.steps(loader, max_duration=f"{num_steps}ba"):
                with session.phase("forward"):
                    loss = subject.loss(subject.model(batch[0]), batch)
                with session.phase("backward"):
                    loss.backward()
                with session.phase("optimizer"):
                    subject.optimizer.step()
                    subject.optimizer.zero_grad()
                if names:
                    session.log(dict.fromkeys(names, 0.25))
        return _background_ns(session)

    return run


def _trainer(root: Path, **options: Any) -> Any:
    def run(subject: TinyStep, loader: AlternatingLoader, num_steps: int) -> int:
        trainer = harness.Trainer(
            model=subject.model,
            train_dataloader=loader,
            max_duration=f"{num_steps}ba",
            loss_fn=subject.loss,
            optimizers=subject.optimizer,
            run_name="bench",
            root=root,
            save_interval=None,
            **options,
        )
        trainer.fit()
        return _background_ns(trainer.session)

    return run


CASES = {
    "session": lambda root: _session(root),
    "session-idle-recipe": lambda root: _session(root, profile=IDLE),
    "session-1-scalar": lambda root: _session(root, num_scalars=1),
    "session-1-scalar-tensorboard": lambda root: _session(root, num_scalars=1, loggers=["tensorboard"]),
    "session-10-scalars-tensorboard": lambda root: _session(root, num_scalars=10, loggers=["tensorboard"]),
    "trainer": lambda root: _trainer(root),
    "trainer-no-loss-logged": lambda root: _trainer(root, log_interval="1000000ba"),
    "trainer-tensorboard": lambda root: _trainer(root, loggers=["tensorboard"]),
}


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("case", CASES)
def test_cpu_time_added_to_a_step(benchmark: Any, tmp_path: Path, case: str) -> None:
    results: list[Added] = []

    def once() -> None:
        root = tmp_path / str(len(results))
        results.append(measure(CASES[case](root), num_steps=NUM_STEPS))

    benchmark.pedantic(once, rounds=3, iterations=1)
    best = sorted(results, key=lambda added: added.total_us)[len(results) // 2]
    for name in ("bare_us", "thread_us", "background_us", "total_us", "null_us"):
        benchmark.extra_info[name] = round(getattr(best, name), 2)
    print(
        f"\n{case}: +{best.total_us:.2f} µs a step "
        f"(training thread {best.thread_us:.2f}, background {best.background_us:.2f}; "
        f"bare step {best.bare_us:.0f}, null {best.null_us:+.2f})"
    )
    assert best.bare_us > 0
