"""The text of `docs/overhead.md`. Every number in it comes from a saved measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from budgets import Budget, Judged
from figures import Scale, show_bounds, show_limit, show_value
from peers_file import Bounds, Peers, Row
from saved import CALL_FIGURE, Benchmark, Saved
from table import by_group
from trials_file import PLANTED_TITLES, Trials, planted_rows, trial_parts

STEP_COLUMNS = (
    ("thread_us", "training thread"),
    ("background_us", "other threads"),
    ("children_us", "children"),
    ("wall_us", "wall clock"),
    ("bare_us", "bare step"),
)
STEP_FIGURES = {"total_us", "null_us", "added_pct", "ledger_thread_us", "ledger_background_us", *dict(STEP_COLUMNS)}
"""What every step benchmark has; shown where one of them is the value, and left to the full table elsewhere."""
IN_US = Scale(1.0, "")
"""For tables whose titles say µs."""
LEDGER = (("thread_us", "ledger_thread_us"), ("background_us", "ledger_background_us"))
GROUPS = {
    "step": "Added to a step of the tiny MLP. `null` is the bare loop against itself: what cannot be told from zero.",
    "window": "Added to a step inside a capture window: what torch.profiler costs while it records.",
    "operators": "Torch operators that a step calls beyond the bare loop. Reading a value from a device waits for it.",
    "charlm": "Added to a step of the workload `charlm`, a small transformer.",
    "logging": "Metrics logged in each step of the tiny MLP. JSONL and text are always on.",
    "naming": "Names and file templates.",
    "start": "CPU time of fresh processes, the interpreter's own start included.",
    "system": "The sampler of system metrics.",
    "capture": "Opening, closing and finishing a capture window.",
    "checkpoint": "How long a checkpoint holds up the training thread.",
    "instructions": "Instructions that the processor carries out, counted by callgrind.",
}
INTRO = """\
# What the harness costs

<!-- Written by benchmarks/report.py from {name}. Do not edit: `make benchmark` writes it anew. -->

![Bars: what is added to a step, and what was measured in percent of the budgets](images/overhead.svg)

| | |
|---|---|
| machine | {machine} |
| torch, Python | {torch}, {python} |
| commit | {commit} |
| measured | {datetime} |
"""
METHOD = """\
## How it is measured

Times are CPU time (of the training thread, of the process's other threads, and of its child processes) unless a wall
clock is named. What is added to a step is a difference: the bare loop and the measured loop are in one process and take
turns step by step, with the same weights and batches, one torch thread, and a garbage collector that leaves alone what
was there before. A change of the machine's speed meets both.

What a step leaves to the one behind it is not seen, or seen with the wrong sign: cold caches, a thread that goes on
writing, a wait for the disk slow the bare step that follows. The comparison with other frameworks takes turns in blocks
of steps instead, and there the Trainer adds about twice as much; `make benchmark-compare` judges a step by its wall
clock too.

What one process measured is one value. Figures are medians over fresh processes, or over the rounds of a benchmark
where the table says so by its number of values; intervals are bootstrap intervals of that median with {confidence:g} %
confidence. Calls that pytest-benchmark times by the thousand ({call}) count as the medians of a few stretches of
rounds: the rounds of one process are not independent of each other.

A budget is broken when the median is above it. `not surely` says that the interval reaches over the limit.

`python benchmarks/table.py benchmarks/results/latest.json` prints every figure of the file, with its interval.
"""
NO_TRIALS = "Not tried out yet: `make benchmark-gate` does.\n"
NO_PEERS = "Not measured yet: `make benchmark-peers` does, in an environment of its own.\n"


def overhead_text(
    saved: Saved,
    judged: Sequence[Judged],
    missing: Sequence[Budget],
    *,
    peers: Peers | None,
    trials: Trials | None,
) -> str:
    """The whole file.

    Args:
        saved: What was measured.
        judged: Budgets and their figures.
        missing: Budgets whose benchmarks were not measured.
        peers: Other frameworks; None where they were not measured.
        trials: Trials of the comparison; None where it was not tried out.
    """
    machine = saved.machine
    parts = [
        INTRO.format(
            name=saved.path.name,
            machine=f"{machine.cpu}, {machine.num_cpus} cores, {machine.system} {machine.machine}",
            torch=machine.torch,
            python=machine.python,
            commit=saved.commit,
            datetime=saved.datetime[:16].replace("T", " ") + " UTC",
        ),
        "## Budgets\n\n"
        + _markdown(("what", "measured [interval]", "budget", "verdict"), _budget_rows(judged, missing)),
        *_reasons([*(one.budget for one in judged), *missing]),
        *_group_parts(saved),
        "## What a run says about itself\n\n" + _ledger(saved),
        "## Beside other frameworks\n\n" + (NO_PEERS if peers is None else "\n".join(_peer_parts(peers))),
        "## Whether a slowdown is found\n\n" + (NO_TRIALS if trials is None else _trials(trials)),
        METHOD.format(confidence=100 * _confidence(saved), call=f"`{CALL_FIGURE}`"),
    ]
    return "\n".join(parts)


def _budget_rows(judged: Sequence[Judged], missing: Sequence[Budget]) -> Iterator[tuple[str, ...]]:
    for one in judged:
        figure = one.budget.figure
        yield one.budget.what, show_bounds(figure, one.interval), show_limit(figure, one.limit), one.verdict
    for budget in missing:
        yield budget.what, "not measured", show_limit(budget.figure, budget.limit), ""


def _reasons(budgets: Sequence[Budget]) -> Iterator[str]:
    reasons = [f"- {budget.what}: {' '.join(budget.why.split())}" for budget in budgets if budget.why]
    if reasons:
        yield "Why some are not tighter:\n\n" + "\n".join(reasons) + "\n"


def _group_parts(saved: Saved) -> Iterator[str]:
    for group, benchmarks in by_group(saved).items():
        about = GROUPS.get(group)
        head = f"## {group.capitalize()}\n\n" + (f"{about}\n\n" if about else "")
        if all(is_step(benchmark) for benchmark in benchmarks):
            titles = ("µs per step", "all [interval]", *(title for _, title in STEP_COLUMNS), "values")
            yield head + _markdown(titles, map(_step_row, benchmarks))
        else:
            titles = ("benchmark", "figure", "median [interval]", "other figures", "values")
            yield head + _markdown(titles, map(_other_row, benchmarks))


def is_step(benchmark: Benchmark) -> bool:
    """Whether its figures are those of a loop beside the bare one, and their sum stands for it."""
    return benchmark.value == "total_us" and all(figure in benchmark.values for figure, _ in STEP_COLUMNS)


def _step_row(benchmark: Benchmark) -> tuple[str, ...]:
    others = (_us(benchmark.interval(figure).mid) for figure, _ in STEP_COLUMNS)
    total = show_bounds("total_us", benchmark.interval("total_us"), scale=IN_US)
    if "added_pct" in benchmark.values and benchmark.group == "charlm":
        total += f", {show_value('added_pct', benchmark.interval('added_pct').mid)}"
    return _title(benchmark), total, *others, _num_values(benchmark)


def _other_row(benchmark: Benchmark) -> tuple[str, ...]:
    others = [
        f"{figure} {show_value(figure, benchmark.interval(figure).mid)}"
        for figure in benchmark.values
        if figure != benchmark.value and figure not in STEP_FIGURES
    ]
    value = show_bounds(benchmark.value, benchmark.interval(benchmark.value))
    return _title(benchmark), benchmark.value, value, "; ".join(others), _num_values(benchmark)


def _ledger(saved: Saved) -> str:
    told = [
        one
        for one in saved.benchmarks.values()
        if is_step(one) and all(name in one.values for pair in LEDGER for name in pair)
    ]
    if not told:
        return "Not measured.\n"
    titles = (
        "µs per step",
        "thread, measured",
        "thread, by the run",
        "other threads, measured",
        "other threads, by the run",
    )
    rows = ((_title(one), *(_us(one.interval(name).mid) for pair in LEDGER for name in pair)) for one in told)
    return (
        "`own_cost` of `run.json` beside what the two loops' difference says. On the training thread the run adds up\n"
        "the wall time between its own clock readings; what lies outside of them is only in the difference.\n\n"
        + _markdown(titles, rows)
    )


def _peer_parts(peers: Peers) -> Iterator[str]:
    machine, commit = peers.machine, peers.git.get("commit") or "unversioned"
    yield (
        f"Measured on {peers.date} with commit {commit}{' with changes' if peers.git.get('dirty') else ''} on "
        f"{machine.get('cpu')}, {machine.get('num_cpus')} cores, Python {machine.get('python')}, "
        f"torch {peers.versions.get('torch')}, in {peers.processes} processes for each cell: µs CPU per step\n"
        "above the bare loop, and percent of it. Here the loops take turns in blocks of steps and not step by step: a\n"
        "framework's writer thread slows the step that follows, which would be a bare one. A block begins cold, so\n"
        "that these figures are above those of the tables before. `make benchmark-peers` measures again;\n"
        "`benchmarks/peers/README.md` says how.\n"
    )
    for workload in peers.workloads:
        rows = []
        for framework in peers.frameworks:
            cells = [peers.row(framework.name, workload, case) for case in peers.cases]
            title = f"{framework.title} {framework.version or ''}".strip()
            rows.append((title, *(_peer_cell(cell) for cell in cells), _weights(cells)))
        yield f"### {workload}\n\n" + _markdown(("framework", *peers.cases, "same weights"), rows)
    notes = dict.fromkeys(f"- {row.framework}, {row.case}: {row.note}" for row in peers.rows if row.note)
    if notes:
        yield "How each was used:\n\n" + "\n".join(notes) + "\n"


def _trials(trials: Trials) -> str:
    return "\n".join([*trial_parts(trials), _markdown(PLANTED_TITLES, planted_rows(trials))])


def _peer_cell(row: Row | None) -> str:
    if row is None:
        return "not measured"
    if not row.figures:
        return f"{row.status}: {row.message}"
    total, percent = row.figures["total_us"], row.figures["added_pct"]
    shown = f"{_us(total.mid)}{_between(total)}, {show_value('added_pct', percent.mid)}"
    return shown if row.status == "measured" else f"{shown} ({row.status}: {row.message})"


def _between(bounds: Bounds) -> str:
    return "" if bounds.low is None or bounds.high is None else f" [{_us(bounds.low)}, {_us(bounds.high)}]"


def _weights(rows: Sequence[Row | None]) -> str:
    known = [row.weights_equal for row in rows if row is not None and row.weights_equal is not None]
    return "" if not known else "yes" if all(known) else "**no**"


def _us(value_us: float) -> str:
    return IN_US.number(value_us)


def _title(benchmark: Benchmark) -> str:
    return f"`{benchmark.name.rpartition('::')[2] if '/' not in benchmark.name else benchmark.name}`"


def _num_values(benchmark: Benchmark) -> str:
    return str(len(benchmark.values[benchmark.value]))


def _confidence(saved: Saved) -> float:
    first = next(iter(saved.benchmarks.values()))
    return first.interval(first.value).confidence


def _markdown(titles: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    """A table; what would end a cell or a row is escaped."""
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
