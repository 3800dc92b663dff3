"""What only a GPU can show. `make test-gpu` runs these; without a CUDA device they skip themselves."""

from __future__ import annotations

import gzip
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from harness import Callback, Recipe, Trainer, session
from harness.capture.options import ProfileOptions
from harness.capture.schedule import Schedule
from harness.checkpoint.find import load_checkpoint
from harness.errors import LossError
from harness.trace import load, phase_spans, profiler_steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # What torch itself warns of on a GPU is not what is tested here.
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture
def cuda_loader() -> Callable[..., DataLoader[Any]]:
    """Batches that lie on the device already: nothing has to be copied in a step."""

    def make(num_batches: int = 20, *, width: int = 4) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(num_batches * 8, width, generator=generator).cuda()
        labels = torch.randint(3, (num_batches * 8,), generator=generator).cuda()
        return DataLoader(TensorDataset(features, labels), batch_size=8)

    return make


def _recipe(**profile: Any) -> Recipe:
    return Recipe(name="window", schedule=Schedule(wait=5, warmup=1, active=3), profile=ProfileOptions(**profile))


@pytest.mark.parametrize("profile", [{}, {"profile_memory": True, "record_shapes": True}, {"with_stack": True}])
def test_a_window_holds_the_kernels_of_its_steps(
    make_trainer: Callable[..., Trainer], written: Callable[..., Any], profile: dict[str, Any]
) -> None:
    make_trainer(device="cuda", max_duration="2ep", profile=_recipe(**profile)).fit()
    (path,) = written().traces()
    trace = load(path)
    kernels = trace.mask(cat="kernel")
    assert kernels.sum() > 3 * 5
    assert [step.step for step in profiler_steps(trace)] == [7, 8, 9]
    assert {span.phase for span in phase_spans(trace)} >= {"data", "forward", "backward", "optimizer"}
    first, last = profiler_steps(trace)[0], profiler_steps(trace)[-1]
    # A kernel may end after the host's last step; none of another step is there.
    assert trace.ts_ns[kernels].min() >= first.ts_ns
    assert trace.ts_ns[kernels].max() <= last.ts_ns + last.dur_ns + 100_000_000
    device_phases = [
        trace.names[name] for name in np.unique(trace.name[trace.mask(cat="gpu_user_annotation")]).tolist()
    ]
    assert "phase/forward" in device_phases


def test_the_launches_of_a_phase_lie_inside_it(
    make_trainer: Callable[..., Trainer], written: Callable[..., Any]
) -> None:
    make_trainer(device="cuda", max_duration="1ep", profile=_recipe()).fit()
    trace = load(written().traces()[0])
    spans = phase_spans(trace)
    rows = np.flatnonzero(trace.mask(cat="cuda_runtime"))
    launches = [row for row in rows if trace.names[trace.name[row]] == "cudaLaunchKernel"]
    inside = [
        any(span.ts_ns <= trace.ts_ns[row] and trace.ts_ns[row] + trace.dur_ns[row] <= span.ts_ns + span.dur_ns
            for span in spans)
        for row in launches
    ]  # fmt: skip
    assert launches
    assert all(inside)


def test_system_metrics_of_the_device_are_sampled_and_on_the_trace(
    make_trainer: Callable[..., Trainer], written: Callable[..., Any]
) -> None:
    pytest.importorskip("pynvml")

    class Slow(Callback):
        def batch_end(self, trainer: Trainer) -> None:
            time.sleep(0.06)  # a window long enough to be sampled in

    make_trainer(device="cuda", max_duration="2ep", profile=_recipe(), callbacks=[Slow()]).fit()
    last = written().lines("system")[-1]
    assert 0 <= last["gpu0_util_pct"] <= 100
    assert last["gpu0_memory_used_bytes"] > 50e6
    assert 0 < last["gpu0_power_w"] < 2000
    assert 0 < last["gpu0_temperature_c"] < 120
    assert written().manifest.health["sampler"]["missed"] == 0
    with gzip.open(written().traces()[0]) as file:
        events = json.load(file)["traceEvents"]
    assert any("gpu0_util_pct" in json.dumps(event) for event in events if event["ph"] == "C")


class _Watch(Callback):
    """Notes on which thread torch says that somebody waits for the device, inside steps."""

    def __init__(self) -> None:
        self.waits: list[tuple[str, str]] = []

    def batch_start(self, trainer: Trainer, batch: Any) -> None:
        torch.cuda.set_sync_debug_mode("warn")

    def batch_end(self, trainer: Trainer) -> None:
        torch.cuda.set_sync_debug_mode("default")

    def note(self, message: Any, *_rest: Any, **_more: Any) -> None:
        if "prototype" not in str(message):  # torch's word about the mode itself
            self.waits.append((threading.current_thread().name, str(message)))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Watch]:
    watch = _Watch()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", watch.note)
        yield watch
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", [{}, {"precision": "amp_bf16"}, {"nan_policy": "stop"}, {"grad_clip_norm": 1.0}])
def test_the_loss_of_each_step_is_logged_without_waiting_for_the_device(
    make_trainer: Callable[..., Trainer], written: Callable[..., Any], cuda_loader: Callable[..., Any], watch: _Watch,
    options: dict[str, Any],
) -> None:  # fmt: skip
    make_trainer(
        device="cuda", train_dataloader=cuda_loader(), max_duration="10ep", callbacks=[watch],
        loggers=["tensorboard"], **options,
    ).fit()  # fmt: skip
    assert [wait for wait in watch.waits if wait[0] == "MainThread"] == []
    losses = written().by_step("loss/train/total")
    assert sorted(losses) == list(range(1, 201))
    assert losses[200] < losses[1]


def test_the_watch_sees_a_step_that_waits(
    make_trainer: Callable[..., Trainer], cuda_loader: Callable[..., Any], watch: _Watch
) -> None:
    class Waits(Callback):
        def after_loss(self, trainer: Trainer, loss: torch.Tensor) -> None:
            loss.item()

    make_trainer(device="cuda", train_dataloader=cuda_loader(), callbacks=[watch, Waits()]).fit()
    assert any(thread == "MainThread" for thread, _ in watch.waits)


def test_half_precision_scales_gradients_and_a_resumed_run_goes_on_bit_equal(
    make_trainer: Callable[..., Trainer], root: Path, written: Callable[..., Any]
) -> None:
    options = {"device": "cuda", "precision": "amp_fp16", "save_interval": "1ep"}
    make_trainer(run_name="whole", max_duration="3ep", **options).fit()
    make_trainer(run_name="foo", max_duration="1ep", **options).fit()
    make_trainer(run_name="foo", max_duration="3ep", resume=True, **options).fit()
    whole, foo = written("whole").by_step("loss/train/total"), written("foo").by_step("loss/train/total")
    assert len(foo) == 30
    assert foo == whole
    states = [
        torch.load(root / name / "checkpoints" / "ep3-ba30-rank0.pt", weights_only=True)["state"]
        for name in ("whole", "foo")
    ]
    assert states[0]["scaler"]["scale"] > 0
    assert all(torch.equal(states[0]["model"][key], states[1]["model"][key]) for key in states[0]["model"])


def test_random_numbers_of_the_device_are_saved_and_put_back(
    make_trainer: Callable[..., Trainer], root: Path, written: Callable[..., Any]
) -> None:
    class Draws(Callback):
        def batch_end(self, trainer: Trainer) -> None:
            trainer.session.log({"drawn": torch.rand((), device="cuda")})

    def fit(**options: Any) -> None:
        make_trainer(device="cuda", callbacks=[Draws()], save_interval="5ba", **options).fit()

    fit(run_name="whole", max_duration="1ep")
    fit(run_name="foo", max_duration="5ba")
    fit(run_name="foo", max_duration="1ep", resume=True)
    assert written("foo").by_step("drawn") == written("whole").by_step("drawn")
    assert len(set(written("foo").by_step("drawn").values())) == 10


@pytest.mark.parametrize("num_steps", [1, 50])
def test_a_loss_that_is_not_finite_is_found_a_little_later_and_at_the_latest_at_the_end(
    make_trainer: Callable[..., Trainer], written: Callable[..., Any], num_steps: int
) -> None:
    def bad(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return outputs.sum() * float("nan")

    with pytest.raises(LossError, match="the loss of step 1 is nan"):
        make_trainer(device="cuda", loss_fn=bad, nan_policy="stop", max_duration=f"{num_steps}ba").fit()
    assert written().status == "failed"


def test_the_manifest_names_the_device(make_trainer: Callable[..., Trainer], written: Callable[..., Any]) -> None:
    make_trainer(device="cuda", max_duration="2ba").fit()
    assert written().manifest.device.startswith("cuda")


def test_a_checkpoint_is_copied_in_the_order_of_the_stream_without_waiting_for_the_device(
    root: Path, written: Callable[..., Any]
) -> None:
    model = torch.nn.Linear(2048, 2048, device="cuda")
    large = torch.randn(8192, 8192, device="cuda")
    waits_ns = []
    with session("foo", root=root, state={"model": model}, save_interval="1000ba", device="cuda") as run:
        for _ in run.steps([torch.ones(1)] * 8, "1ep"):
            with torch.no_grad():
                for _ in range(20):  # some tenths of a second on the device
                    large = torch.nn.functional.normalize(large @ large)
                model.weight.fill_(run.step)
            began_ns = time.perf_counter_ns()
            if run.step in (3, 6):
                # Between two steps in truth; here the numbers of the step before name it, and the weights are new.
                run.saver.save(wait=False)
                waits_ns.append(time.perf_counter_ns() - began_ns)
                assert not torch.cuda.current_stream().query(), "the device was waited for"
    foo = written()
    for step in (2, 5):
        content = load_checkpoint(foo.path / "checkpoints" / f"ep0-ba{step}-rank0.pt")
        assert content["state"]["model"]["weight"].eq(step + 1).all()
    assert waits_ns[1] < 100_000_000
