"""The command as a user runs it: real processes, exit codes, signals, closed streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HARNESS = (sys.executable, "-m", "harness")
TIMEOUT_S = 120

WORKLOAD = '''
import time
import torch
from harness import Workload

def build(fail_at: int = 0, wait_s: float = 0.0, fail_in_build: bool = False) -> Workload:
    """Eight steps an epoch."""
    if fail_in_build:
        raise RuntimeError("no data here")
    calls = 0

    def loss(outputs, batch):
        nonlocal calls
        calls += 1
        time.sleep(wait_s)
        if calls == fail_at:
            raise EOFError("of the user")
        return outputs.pow(2).mean()

    return Workload(
        model=torch.nn.Linear(4, 2),
        train_dataloader=[torch.rand(8, 4) for _ in range(8)],
        eval_dataloader=[torch.rand(8, 4)],
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        loss_fn=loss,
        max_duration="2ep",
    )
'''
RECIPE = 'description = "tiny"\n[schedule]\nwait = 3\nwarmup = 1\nactive = 2\nrepeat = 1\n'


@dataclass(frozen=True, slots=True)
class Finished:
    """What a process left."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with a workload of the user's."""

    path: Path

    def environment(self) -> dict[str, str]:
        names = ("HARNESS_ROOT", "HARNESS_RUN_NAME", "COMPOSER_RUN_NAME", "RUN_NAME", "MAKELEVEL")
        return {name: value for name, value in os.environ.items() if name not in names}

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(
            [*HARNESS, *arguments], cwd=self.path, env=self.environment(), text=True, encoding="utf-8", **pipes
        )

    def run(self, *arguments: str) -> Finished:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=TIMEOUT_S)
        return Finished(process.returncode, out, err)

    def train(self, *arguments: str) -> Finished:
        return self.run("train", "--workload", "mine:build", "--logger", "none", *arguments)

    def show(self, name: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.run("show", name, "--json").out)
        return shown

    def wait_for_steps(self, name: str, count: int, process: subprocess.Popen[str]) -> None:
        path = self.path / "runs" / name / "steps-rank0.jsonl"
        for _ in range(TIMEOUT_S * 20):
            if path.exists() and path.read_bytes().count(b"\n") >= count:
                return
            assert process.poll() is None, "it ended too early"
            time.sleep(0.05)
        raise AssertionError(f"no {count} steps in {TIMEOUT_S} s")


def make_project(path: Path) -> Project:
    (path / "mine.py").write_text(WORKLOAD)
    (path / "tiny.toml").write_text(RECIPE)
    return Project(path)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


@dataclass(frozen=True, slots=True)
class Profiled:
    """A project with a run `foo` that was profiled."""

    project: Project
    result: Finished


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    project = make_project(tmp_path_factory.mktemp("project"))
    options = ("--workload", "mine:build", "--profile", "./tiny.toml", "--seed", "3")
    return Profiled(project, project.run("profile", "foo", *options))


def test_profile_ends_with_a_table_on_stdout(profiled: Profiled) -> None:
    result = profiled.result
    assert result.code == 0, result.err
    for text in ("foo (finished)", "median", "p95", "forward", "own cost", "evaluation", "next", "harness show foo"):
        assert text in result.out.replace(".venv/bin/", "")
    assert "runs/foo/traces/rank0.000005.pt.trace.json.gz" in result.out
    assert "runs/foo/checkpoints/ep2-ba16-rank0.pt" in result.out
    assert "ui.perfetto.dev" in result.out


def test_talk_goes_to_stderr_and_begins_with_name_and_directory(profiled: Profiled) -> None:
    talk = [line for line in profiled.result.err.splitlines() if not line.startswith("USDT")]
    assert talk[0] == "run foo in runs/foo"


def test_what_show_says_is_what_was_trained(profiled: Profiled) -> None:
    shown = profiled.project.show("foo")
    assert (shown["status"], shown["summary"]["step"], shown["steps"]["num_steps"]) == ("finished", 16, 16)
    assert shown["config"]["seed"] == 3
    assert shown["evaluation"]["step"] == 16
    assert [one["step"] for one in shown["artifacts"] if one["kind"] == "trace"] == [5]
    assert [one["step"] for one in shown["artifacts"] if one["kind"] == "checkpoint"] == [8, 16]
    assert shown["problems"] == []
    assert abs(sum(shown["steps"]["shares_pct"].values()) - 100) < 0.01


def test_the_same_name_again_names_the_ways_on_and_changes_nothing(profiled: Profiled) -> None:
    before = (profiled.project.path / "runs" / "foo" / "run.json").read_bytes()
    result = profiled.project.train("foo")
    assert (result.code, result.out) == (2, "")
    assert all(way in result.err for way in ("--resume", "--overwrite", "foo-2"))
    assert (profiled.project.path / "runs" / "foo" / "run.json").read_bytes() == before


@pytest.mark.slow
def test_a_run_goes_on_and_a_finished_one_says_that_there_is_nothing_left(project: Project) -> None:
    assert project.train("foo").code == 0
    longer = project.train("foo", "--resume", "--max-duration", "3ep")
    assert longer.code == 0, longer.err
    assert "run foo in runs/foo, goes on after step 16" in longer.err
    assert [(one["first_step"], one["last_step"]) for one in project.show("foo")["attempts"]] == [(1, 16), (17, 24)]
    nothing = project.train("foo", "--resume", "--max-duration", "3ep")
    assert nothing.code == 0
    assert "nothing was trained" in nothing.err


@pytest.mark.slow
def test_without_a_name_one_is_generated_and_printed(project: Project) -> None:
    result = project.train("--max-duration", "2ba", "--save-interval", "none")
    assert result.code == 0, result.err
    (directory,) = (project.path / "runs").iterdir()
    assert f"run {directory.name} in runs/{directory.name}" in result.err
    assert f"{directory.name} (finished)" in result.out
    assert not list(directory.glob("checkpoints/*.pt"))


def test_an_exception_of_the_training_has_its_traceback_the_table_and_code_3(project: Project) -> None:
    result = project.train("foo", "-o", "fail_at=5")
    assert result.code == 3
    assert "foo (failed)" in result.out
    assert "mine.py" in result.err
    assert "EOFError: of the user" in result.err
    assert result.err.splitlines()[-1] == "error: run foo failed; what it wrote until then is in runs/foo"
    assert project.show("foo")["summary"]["step"] == 4


def test_a_workload_that_cannot_be_built_shows_the_users_lines_only(project: Project) -> None:
    result = project.train("foo", "-o", "fail_in_build=yes")
    assert (result.code, result.out) == (2, "")
    assert "mine.py" in result.err
    assert "RuntimeError: no data here" in result.err
    assert "load.py" not in result.err
    assert not (project.path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((" ",), "run_name=' '"),
        (("",), "is empty"),
        (("../x",), "'/'"),
        (("-o", "lr"), "key=value"),
        (("--profile", "quikc"), "did you mean 'quick'?"),
        (("--max-duration", "5"), "--max-duration"),
        (("--bogus",), "--bogus"),
    ],
)
def test_wrong_use_is_told_with_code_2_and_leaves_nothing(
    project: Project, arguments: tuple[str, ...], text: str
) -> None:
    result = project.run("train", *arguments)
    assert (result.code, result.out) == (2, "")
    assert text in result.err
    assert "hint:" in result.err
    assert "Traceback" not in result.err
    assert not (project.path / "runs").exists()


def interrupted(project: Project, *signals: signal.Signals, wait_s: str = "0.01") -> Finished:
    """Send signals to a run in its middle."""
    training = ("--workload", "mine:build", "-o", f"wait_s={wait_s}", "--max-duration", "1h", "--logger", "none")
    with project.start("profile", "foo", "--profile", "./tiny.toml", *training) as process:
        project.wait_for_steps("foo", 3, process)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.3)
        out, err = process.communicate(timeout=TIMEOUT_S)
    return Finished(process.returncode, out, err)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_run_with_everything_written(project: Project, number: signal.Signals, code: int) -> None:
    result = interrupted(project, number)
    assert result.code == code, result.err
    assert "foo (interrupted)" in result.out
    assert "Traceback" not in result.err
    shown = project.show("foo")
    assert shown["status"] == "interrupted"
    last_saved = max(one["step"] for one in shown["artifacts"] if one["kind"] == "checkpoint")
    assert last_saved == shown["summary"]["step"] == shown["steps"]["num_steps"]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_it_now(project: Project) -> None:
    result = interrupted(project, signal.SIGINT, signal.SIGINT, wait_s="3")
    assert result.code == 130
    assert "stopped at once" in result.err
    assert project.show("foo")["status"] == "crashed"


def test_a_reader_that_is_gone_is_no_error(profiled: Profiled) -> None:
    for arguments in (("ls",), ("ls", "--json"), ("show", "foo"), ("--help",)):
        read_end, write_end = os.pipe()
        os.close(read_end)
        with profiled.project.start(*arguments, stdout=write_end) as process:
            os.close(write_end)
            _, err = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, err) == (0, ""), arguments


def test_a_full_stdout_is_told(profiled: Profiled) -> None:
    with open("/dev/full", "w") as full, profiled.project.start("ls", stdout=full) as process:  # noqa: PTH123
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, err) == (2, "error: cannot write to stdout: No space left on device\n")


@pytest.mark.slow
def test_a_training_outlives_its_terminal(project: Project) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with project.start("train", "foo", "--workload", "mine:build", stdout=write_end, stderr=write_end) as process:
        os.close(write_end)
        assert process.wait(timeout=TIMEOUT_S) == 0
    assert project.show("foo")["status"] == "finished"


def test_help_is_instant_and_loads_nothing_heavy(project: Project) -> None:
    program = (
        "import sys, time\n"
        "from harness.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = [name for name in ('torch', 'numpy', 'rich', 'psutil', 'msgspec') if name in sys.modules]\n"
        "print(code, heavy, time.process_time(), file=sys.stderr)\n"
    )
    for command in ((), ("train",), ("ls",), ("checkpoints",)):
        seconds = []
        for _ in range(5):
            result = subprocess.run(
                [sys.executable, "-c", program, *command, "--help"], capture_output=True, text=True, check=True
            )
            assert result.stderr.startswith("0 [] ")
            seconds.append(float(result.stderr.split()[-1]))
        assert min(seconds) < 0.15


def test_reading_commands_load_no_torch(profiled: Profiled) -> None:
    program = (
        "import sys\nfrom harness.cli import main\nassert main(sys.argv[1:]) == 0\nassert 'torch' not in sys.modules\n"
    )
    commands = ("ls", "show foo", "show foo --json", "checkpoints foo", "checkpoints foo --verify", "profiles quick")
    for command in (*commands, "profiles", "checkpoints foo --keep 9"):
        subprocess.run(
            [sys.executable, "-c", program, *command.split()], cwd=profiled.project.path, check=True, timeout=TIMEOUT_S
        )


@pytest.fixture
def many_runs(tmp_path: Path) -> Path:
    summary = '"summary": {"step": 230, "started": "2025-11-23T20:14:29.000Z", "median_step_us": 6300.0}'
    for number in range(10_000):
        run = tmp_path / f"run-{number:05d}"
        run.mkdir()
        text = f'{{"format": 1, "run_name": "{run.name}", "status": "finished", {summary}}}'
        (run / "run.json").write_text(text)
    return tmp_path


@pytest.mark.slow
def test_ten_thousand_runs_are_listed_in_under_a_second(many_runs: Path) -> None:
    program = (
        "import sys, time\n"
        "from harness.cli import main\n"
        "main(sys.argv[1:])\n"
        "print(time.process_time(), file=sys.stderr)\n"
    )
    for arguments in ((), ("--json",)):
        command = [sys.executable, "-c", program, "ls", "--root", str(many_runs), *arguments]
        results = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
        assert results[0].stdout.count("run-0") >= 9_999
        assert min(float(result.stderr) for result in results) < 1.0


@pytest.mark.slow
def test_tensorboard_serves_the_run_under_its_name_on_loopback(profiled: Profiled) -> None:
    import socket
    import urllib.error
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with profiled.project.start("tensorboard", "--port", str(port)) as process:
        try:
            runs = None
            for _ in range(TIMEOUT_S * 4):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs") as answer:
                        runs = json.load(answer)
                    if runs:
                        break
                except urllib.error.URLError:
                    pass
                time.sleep(0.25)
            assert runs == ["foo"]
        finally:
            process.terminate()
            _, err = process.communicate(timeout=TIMEOUT_S)
    assert f"http://127.0.0.1:{port}/" in err
