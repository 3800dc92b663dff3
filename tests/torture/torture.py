"""`make torture N=200`: training processes are killed with SIGKILL at random moments, resumed, and killed again.

Each run is killed some times and then left to finish. Its whole sequence of losses and its final weights must then be
those of a run that nobody killed, every bit of them. Most attempts are forked from a process that has torch loaded;
every eighth is a new `harness train`. Prints what came of it, and writes it to a file as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from attempts import UNDISTURBED, Attempts, Death
from evidence import Evidence, complaints_about_resume, complaints_after_kill, complaints_at_end, look
from faults import NoCompilerError, compile_shim
from nursery import PROJECT, Nursery

KILLS_PER_RUN = 8
NEW_EVERY = 8
MAX_ATTEMPTS = 4 * KILLS_PER_RUN
"""Of one run, for the case that none of them is hit."""
SETTLE_S = 30.0
TRACES = "[schedule]\nwait = 7\nwarmup = 1\nactive = 1\nrepeat = 0\n"
_SIGTERM_CODE = 128 + signal.SIGTERM


@dataclass
class Report:
    """What came of it."""

    kills_wanted: int
    seed: int
    kills: int = 0
    kills_inside_a_save: int = 0
    """After these a checkpoint was half written, not listed, not what `latest` points to, or not acknowledged."""
    kills_by_way: dict[str, int] = field(default_factory=dict)
    losses: int = 0
    """Kills after which a checkpoint was not found that the run had called saved."""
    resumes: int = 0
    resumes_refused: int = 0
    attempts: int = 0
    attempts_new: int = 0
    """By a new `harness train`; the others were forked."""
    attempts_with_traces: int = 0
    runs: int = 0
    runs_bit_equal: int = 0
    traces: int = 0
    """That finished; each was read."""
    complaints: list[str] = field(default_factory=list)
    """All that must not be, and after which attempt it was found."""
    took_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing was found that must not be."""
        return not (self.complaints or self.losses or self.resumes_refused) and self.runs == self.runs_bit_equal

    def lines(self) -> list[str]:
        """For people."""
        ways = ", ".join(f"{count} {way}" for way, count in sorted(self.kills_by_way.items()))
        return [
            f"kills           {self.kills} ({ways})",
            f"inside a save   {self.kills_inside_a_save}",
            f"losses          {self.losses}",
            f"resumes         {self.resumes - self.resumes_refused} of {self.resumes}",
            f"bit-equal       {self.runs_bit_equal} of {self.runs} runs",
            f"attempts        {self.attempts}, of them {self.attempts_new} by a new harness train and "
            f"{self.attempts_with_traces} with a recipe ({self.traces} traces)",
            f"seed            {self.seed}",
            f"took            {self.took_s:.0f} s",
            *(f"WRONG: {complaint}" for complaint in self.complaints),
        ]


class Torture:
    """Kills runs until there are enough kills.

    Args:
        attempts: Makes attempts.
        folder: For the runs. Those in which something is wrong stay there.
        report: Filled in.
        say: Takes a line about each run.
    """

    def __init__(self, attempts: Attempts, folder: Path, report: Report, say: Callable[[str], object]) -> None:
        self._attempts = attempts
        self._folder = folder
        self._report = report
        self._say = say
        self._chance = random.Random(report.seed)
        self._reference = self._undisturbed()

    def _undisturbed(self) -> Evidence:
        root = self._folder / "undisturbed"
        ended = self._attempts.fork(root)
        if ended.code != 0:
            raise SystemExit(f"error: the run that nobody kills ended with {ended.code}: {ended.stderr}")
        return look(root)

    def kill(self) -> None:
        """Kill run after run."""
        while self._report.kills < self._report.kills_wanted:
            root = self._folder / f"run{self._report.runs + 1}"
            while not self._attempt(root):
                pass
            self._end(root)

    def _attempt(self, root: Path) -> bool:
        """One more attempt of a run; whether the run is over."""
        report, attempts = self._report, self._attempts
        report.attempts += 1
        before = look(root)
        number = len(before.attempts) + 1
        new = report.attempts % NEW_EVERY == 0
        enough = report.kills >= report.kills_wanted or number > KILLS_PER_RUN
        death = UNDISTURBED if enough else attempts.draw(root, new=new)
        with_traces = self._chance.random() < 0.2
        report.attempts_new += new
        report.attempts_with_traces += with_traces
        report.resumes += number > 1
        ended = (attempts.start_new if new else attempts.fork)(root, death, with_traces=with_traces)
        evidence = look(root)
        where = f"{root.name} attempt {number} ({death.way})"
        self._note(where, complaints_after_kill(evidence) + complaints_about_resume(before, evidence))
        report.losses += evidence.lost
        if ended.killed or ended.signal == signal.SIGTERM:  # which nobody handles before the session is open
            self._count_kill(death, evidence)
            return number > MAX_ATTEMPTS
        if ended.code not in (0, _SIGTERM_CODE):
            report.resumes_refused += number > 1
            self._note(where, [f"ended with code {ended.code}, signal {ended.signal}: {ended.stderr}"])
            return True
        return evidence.status == "finished"

    def _count_kill(self, death: Death, evidence: Evidence) -> None:
        report = self._report
        report.kills += 1
        report.kills_by_way[death.way] = report.kills_by_way.get(death.way, 0) + 1
        report.kills_inside_a_save += bool(evidence.between)

    def _end(self, root: Path) -> None:
        report = self._report
        evidence = _settled(root)
        complaints = complaints_at_end(evidence, self._reference)
        self._note(f"{root.name} at its end", complaints)
        report.runs += 1
        report.runs_bit_equal += not complaints
        report.traces += len(evidence.traces)
        self._say(f"{root.name}: {', '.join(evidence.attempts)}: {'WRONG' if complaints else 'bit-equal'}")
        if not complaints:
            shutil.rmtree(root)

    def _note(self, where: str, complaints: list[str]) -> None:
        self._report.complaints += [f"{where}: {complaint}" for complaint in complaints]


def _settled(root: Path) -> Evidence:
    """What there is once the processes are gone that finish the traces of killed attempts."""
    deadline = time.monotonic() + SETTLE_S
    while (evidence := look(root)).temporary and time.monotonic() < deadline:
        time.sleep(0.1)
    return evidence


def torture(kills: int, seed: int, folder: Path, say: Callable[[str], object]) -> Report:
    """Kill training processes below `folder` until there were `kills` kills.

    Raises:
        NoCompilerError: The shim cannot be compiled.
    """
    report = Report(kills_wanted=kills, seed=seed)
    begin = time.monotonic()
    recipe = folder / "traces.toml"
    recipe.write_text(TRACES)
    shim = compile_shim(folder)
    with Nursery(folder, shim) as nursery:
        attempts = Attempts(nursery, shim, recipe, random.Random(seed))
        Torture(attempts, folder, report, say).kill()
    report.took_s = round(time.monotonic() - begin, 1)
    return report


def main() -> int:
    """Torture, print and write the report; 1 if something was found that must not be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="how many (200)")
    parser.add_argument("--seed", type=int, default=None, help="repeats what was drawn; times differ all the same")
    parser.add_argument("--report", type=Path, default=PROJECT / "build" / "torture.json", help="where to write it")
    asked = parser.parse_args()
    if asked.kills < 1:
        parser.error(f"--kills={asked.kills} kills nothing; give a number from 1")
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        report = torture(asked.kills, seed, folder, lambda line: print(line, file=sys.stderr, flush=True))
    except NoCompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    asked.report.parent.mkdir(parents=True, exist_ok=True)
    asked.report.write_text(json.dumps({**asdict(report), "ok": report.ok}, indent=2) + "\n")
    print("\n".join([*report.lines(), f"report          {asked.report}"]))
    if report.ok:
        shutil.rmtree(folder)
    else:
        print(f"the runs in which something is wrong are in {folder}", file=sys.stderr)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
