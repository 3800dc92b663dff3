"""What a capture window costs: opening and closing it on the training thread, and finishing its trace in a child.

A window by hand (torch.profiler and its raw export) and one of the harness take turns, on the same steps.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from recorded import clock, record
from windows import TorchTimes, WindowTimes, harness_window, torch_window, transformer_step

from harness.capture.trace_file import FinishJob, start_finishing

ROUNDS = 15
FINISHES = 5
MB = 1e6
POLL_S = 0.002

pytestmark = [
    pytest.mark.benchmark(group="capture", timer=clock),
    pytest.mark.filterwarnings("ignore:.*warmup.*"),  # torch's advice on schedules without one
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[WindowTimes, TorchTimes]]:
    """Windows of the harness and by hand, in turns. The first pair, which warms both up, is left out."""
    torch.set_num_threads(1)
    step, root = transformer_step(), tmp_path_factory.mktemp("windows")
    found = []
    for number in range(ROUNDS + 1):
        with TemporaryDirectory(dir=root) as folder:
            by_hand = torch_window(step, root / f"{number}.json")
            found.append((harness_window(step, Path(folder)), by_hand))
    return found[1:]


def test_open_a_window(benchmark: Any, pairs: Sequence[tuple[WindowTimes, TorchTimes]]) -> None:
    rows = iter([{"open_ms": ours.open_ms, "torch_open_ms": by_hand.open_ms} for ours, by_hand in pairs])
    record(benchmark, lambda: next(rows), value="open_ms", rounds=len(pairs))


def test_close_a_window(benchmark: Any, pairs: Sequence[tuple[WindowTimes, TorchTimes]]) -> None:
    """`ratio_to_export` is to what a raw trace takes by hand: the export, and the stop that has to come before it."""
    rows = iter([close_figures(ours, by_hand) for ours, by_hand in pairs])
    record(benchmark, lambda: next(rows), value="close_ms", rounds=len(pairs))


@pytest.mark.parametrize("num_steps", [3, 30], ids="{}-steps".format)
def test_finish_a_trace(benchmark: Any, tmp_path: Path, num_steps: int) -> None:
    """CPU time and memory of the child, start of the interpreter included, for each MB of raw trace."""
    torch.set_num_threads(1)
    torch_window(transformer_step(), tmp_path / "trace.json", num_steps=num_steps)

    def measure() -> Mapping[str, float]:
        with TemporaryDirectory(dir=tmp_path) as folder:
            raw = Path(folder) / "raw" / "trace.json"
            raw.parent.mkdir()
            shutil.copyfile(tmp_path / "trace.json", raw)
            return finish_figures(raw, Path(folder) / "rank0.000001.pt.trace.json.gz")

    record(benchmark, measure, value="cpu_s", rounds=FINISHES)


def close_figures(ours: WindowTimes, by_hand: TorchTimes) -> dict[str, float]:
    """The figures of one pair of windows."""
    return {
        "close_ms": ours.close_ms,
        "ratio_to_export": ours.close_ms / (by_hand.stop_ms + by_hand.export_ms),
        "ratio_to_export_alone": ours.close_ms / by_hand.export_ms,
        "torch_stop_ms": by_hand.stop_ms,
        "torch_export_ms": by_hand.export_ms,
        "close_wall_ms": ours.close_wall_ms,
        "export_wall_ms": ours.export_wall_ms,
    }


def finish_figures(raw: Path, final: Path) -> dict[str, float]:
    """Have a child finish a raw trace, and watch its memory."""
    raw_bytes = raw.stat().st_size
    job = FinishJob(
        raw_path=str(raw),
        final_path=str(final),
        result_path=str(raw.with_name("result.json")),
        run_name="bench",
        rank=0,
        world_size=1,
        first_step=1,
        last_step=1,
    )
    child, peak_bytes = start_finishing(job), 0
    while (result := child.poll()) is None:
        peak_bytes = max(peak_bytes, peak_memory_bytes(child.pid))
        time.sleep(POLL_S)
    assert result.ok, result.error
    assert result.size_bytes == final.stat().st_size
    return {
        "cpu_s": result.cpu_ns / 1e9,
        "cpu_s_per_mb": result.cpu_ns / 1e9 / (raw_bytes / MB),
        "trace_bytes_per_mb": result.size_bytes / (raw_bytes / MB),
        "raw_bytes": raw_bytes,
        "max_rss_bytes": peak_bytes,
    }


def peak_memory_bytes(pid: int) -> int:
    """Most memory a process has had; 0 when it has ended.

    Not `ru_maxrss`: a child starts as its parent, and the kernel keeps the parent's size in it.
    """
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
