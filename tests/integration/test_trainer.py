"""The Trainer does what the loop one would write by hand does, and calls back where it says."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from harness.errors import ConfigError
from harness.models import mnist_model
from harness.trainer.callback import EVENTS, Callback


class Recorder(Callback):
    """Writes down each event with the step in progress."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []


def _note(event: str) -> Callable[..., None]:
    def method(self: Recorder, trainer: Any, *args: Any) -> None:
        self.events.append((event, trainer.session.step))

    return method


for _event in EVENTS:
    setattr(Recorder, _event, _note(_event))


class Losses(Callback):
    """The losses of all microbatches."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_loss(self, trainer: Any, loss: torch.Tensor) -> None:
        self.losses.append(loss.item())


class Gradients(Callback):
    """The gradient of each step, all parameters in one vector."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []

    def after_backward(self, trainer: Any) -> None:
        parameters = [parameter for parameter in trainer.state.model.parameters() if parameter.grad is not None]
        self.gradients.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))


def parameters_of(trainer: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.state.model.parameters()])


def without_dropout(model: nn.Module) -> nn.Module:
    return nn.Sequential(*(layer for layer in model if not isinstance(layer, nn.Dropout)))  # type: ignore[attr-defined]


def test_it_trains_as_the_loop_written_by_hand(
    make_trainer: Callable[..., Any], make_model: Callable[[], nn.Module], make_loader: Callable[..., Any]
) -> None:
    trainer = make_trainer(max_duration="2ep", train_dataloader=make_loader(shuffle=True))
    torch.manual_seed(17)
    trainer.fit()

    model, loader = make_model(), make_loader(shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(17)
    for _ in range(2):
        for features, labels in loader:
            loss = nn.functional.cross_entropy(model(features), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    expected = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert torch.equal(parameters_of(trainer), expected)
    assert trainer.state.loss == loss.item()


def test_the_example_of_the_issue_works(
    root: Any, written: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness import Trainer

    monkeypatch.setenv("HARNESS_ROOT", str(root))
    images, labels = torch.rand(32, 1, 8, 8), torch.randint(10, (32,))
    loader = torch.utils.data.DataLoader(list(zip(images, labels, strict=True)), batch_size=8)
    trainer = Trainer(
        model=mnist_model(num_classes=10), train_dataloader=loader, max_duration="2ep", run_name="my-cool-run-name"
    )
    trainer.fit()
    assert trainer.state.run_name == "my-cool-run-name"
    assert written("my-cool-run-name").steps() == list(range(1, 9))


def test_without_a_name_one_is_generated_printed_and_readable(
    make_trainer: Callable[..., Any], root: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(run_name=None)
    assert trainer.state.run_name.count("-") == 2
    assert f"run {trainer.state.run_name} in {root / trainer.state.run_name}\n" in capsys.readouterr().err
    trainer.fit()
    assert [path.name for path in root.iterdir()] == [trainer.state.run_name]


def test_the_run_says_what_was_trained_with_what(make_trainer: Callable[..., Any], written: Callable[..., Any]) -> None:
    make_trainer(grad_clip_norm=1.0, loggers=["tensorboard"], overwrite=True, save_num_checkpoints_to_keep=2).fit()
    config = written().manifest.config
    assert config["model"] == {"class": "Sequential", "num_parameters": 67}
    assert config["optimizers"][0]["class"] == "AdamW"
    assert (config["max_duration"], config["seed"], config["grad_clip_norm"]) == ("1ep", 17, 1.0)
    assert config["loggers"] == ["tensorboard"]
    assert (config["overwrite"], config["save_num_checkpoints_to_keep"]) == (True, 2)


class TestEvents:
    STEP = ("batch_start", "after_forward", "after_loss", "after_backward", "batch_end")

    def test_they_come_in_the_order_that_is_documented(
        self, make_trainer: Callable[..., Any], make_loader: Callable[..., Any]
    ) -> None:
        recorder = Recorder()
        make_trainer(
            train_dataloader=make_loader(2), max_duration="2ep", eval_dataloader=make_loader(1), callbacks=[recorder]
        ).fit()
        expected = [("fit_start", 0)]
        for epoch in range(2):
            expected.append(("epoch_start", 2 * epoch))
            expected += [(event, 2 * epoch + step) for step in (1, 2) for event in self.STEP]
            end = 2 * epoch + 2
            expected += [("eval_start", end), ("eval_end", end), ("epoch_end", end)]
        assert recorder.events == [*expected, ("fit_end", 4)]
        assert [event for event in EVENTS if event != "on_exception"] == list(
            dict.fromkeys(event for event, _ in recorder.events)
        )

    def test_each_microbatch_has_its_forward_and_loss(
        self, make_trainer: Callable[..., Any], make_loader: Callable[..., Any]
    ) -> None:
        recorder = Recorder()
        make_trainer(train_dataloader=make_loader(1), microbatch_size=3, callbacks=[recorder]).fit()
        assert [event for event, step in recorder.events if step == 1][:7] == [
            "batch_start",
            *("after_forward", "after_loss") * 2,
            "after_backward",
            "batch_end",
        ]

    def test_callbacks_are_called_in_their_order(self, make_trainer: Callable[..., Any]) -> None:
        order: list[str] = []

        class Named(Callback):
            def __init__(self, name: str) -> None:
                self.name = name

            def fit_start(self, trainer: Any) -> None:
                order.append(self.name)

        make_trainer(max_duration="1ba", callbacks=[Named("a"), Named("b"), Named("c")]).fit()
        assert order == ["a", "b", "c"]

    def test_the_gradient_a_callback_sees_is_unscaled_and_unclipped(self, make_trainer: Callable[..., Any]) -> None:
        plain, scaled = Gradients(), Gradients()
        make_trainer(max_duration="1ba", callbacks=[plain], run_name="plain").fit()
        make_trainer(
            max_duration="1ba", callbacks=[scaled], run_name="scaled", precision="amp_fp16", grad_clip_norm=1e-4
        ).fit()
        assert plain.gradients[0].norm() > 0.01
        assert torch.allclose(plain.gradients[0], scaled.gradients[0], atol=2e-3)

    def test_a_callback_may_stop_the_training(
        self, make_trainer: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        class StopAtFour(Callback):
            def after_loss(self, trainer: Any, loss: torch.Tensor) -> None:
                if trainer.session.step == 4:
                    trainer.stop("enough")

        make_trainer(callbacks=[StopAtFour()]).fit()
        assert written().steps() == [1, 2, 3, 4]
        assert written().status == "finished"

    def test_a_callback_may_log_and_evaluate(
        self, make_trainer: Callable[..., Any], make_loader: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        class Looks(Callback):
            def batch_end(self, trainer: Any) -> None:
                trainer.session.log({"seen": trainer.state.timestamp.batch})
                if trainer.state.timestamp.batch == 3:
                    trainer.evaluate()

            def epoch_end(self, trainer: Any) -> None:
                trainer.session.log({"epoch_ended": trainer.state.timestamp.epoch})

        make_trainer(callbacks=[Looks()], eval_dataloader=make_loader(1), eval_interval="5ba", log_interval="4ba").fit()
        assert written().values("seen") == [4, 8]
        assert written().by_step("epoch_ended") == {10: 1}
        assert list(written().by_step("loss/eval/total")) == [3, 5, 10]


class TestExceptions:
    @pytest.mark.parametrize("event", [event for event in EVENTS if event != "on_exception"])
    def test_one_in_any_event_is_kept_and_told(
        self,
        event: str,
        make_trainer: Callable[..., Any],
        make_loader: Callable[..., Any],
        written: Callable[..., Any],
    ) -> None:
        told: list[BaseException] = []

        class Broken(Callback):
            def on_exception(self, trainer: Any, error: BaseException) -> None:
                told.append(error)

        def raises(self: Any, trainer: Any, *args: Any) -> None:
            raise ZeroDivisionError(event)

        setattr(Broken, event, raises)
        trainer = make_trainer(callbacks=[Broken()], eval_dataloader=make_loader(1), eval_interval="3ba")
        with pytest.raises(ZeroDivisionError, match=event) as caught:
            trainer.fit()
        assert told == [caught.value]
        assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "raises"
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None
        assert written().status == "failed"
        assert written().manifest.attempts[0].error == f"ZeroDivisionError: {event}"
        assert written().steps() == list(range(1, trainer.state.timestamp.batch + 1))

    def test_one_in_on_exception_hides_neither_the_first_nor_the_other_callbacks(
        self, make_trainer: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        told: list[str] = []

        class Broken(Callback):
            def batch_end(self, trainer: Any) -> None:
                raise ZeroDivisionError("the first")

            def on_exception(self, trainer: Any, error: BaseException) -> None:
                raise KeyError("the second")

        class Listens(Callback):
            def on_exception(self, trainer: Any, error: BaseException) -> None:
                told.append(str(error))

        with pytest.raises(ZeroDivisionError, match="the first") as caught:
            make_trainer(callbacks=[Broken(), Listens()]).fit()
        assert told == ["the first"]
        assert caught.value.__notes__ == ["on_exception of a callback raised too: KeyError: 'the second'"]
        assert written().steps() == [1], "the step was done before its callback raised"

    def test_a_logger_that_raises_everywhere_changes_nothing(
        self, make_trainer: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        from harness.loggers.base import BaseLogger

        class Broken(BaseLogger):
            name = "broken"

            def log_metrics(self, *args: Any, **kwargs: Any) -> None:
                raise OSError("no")

            flush = close = log_text = log_params = log_metrics

        make_trainer(loggers=[Broken()]).fit()
        assert written().status == "finished"
        assert written().steps() == list(range(1, 11))
        assert len(written().values("loss/train/total")) == 10
        health = written().manifest.health["loggers"]
        assert health["broken"]["errors"] > 0
        assert health["broken"]["last_error"] == "OSError: no"
        assert health["jsonl"]["errors"] == 0

    def test_a_logger_that_raises_does_not_hide_the_exception_of_training(
        self, make_trainer: Callable[..., Any]
    ) -> None:
        from harness.loggers.base import BaseLogger

        class Broken(BaseLogger):
            name = "broken"

            def close(self) -> None:
                raise OSError("no")

        class Raises(Callback):
            def after_backward(self, trainer: Any) -> None:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as caught:
            make_trainer(loggers=[Broken()], callbacks=[Raises()]).fit()
        assert caught.value.__context__ is None


class TestGradients:
    def test_microbatches_give_the_gradient_of_the_whole_batch(
        self, make_trainer: Callable[..., Any], make_model: Callable[[], nn.Module], make_loader: Callable[..., Any]
    ) -> None:
        gradients: dict[int | None, Gradients] = {}
        losses: dict[int | None, float] = {}
        for size in (None, 1, 3, 16):
            gradients[size] = Gradients()
            trainer = make_trainer(
                model=without_dropout(make_model()),
                train_dataloader=make_loader(3, batch_size=10),
                microbatch_size=size,
                callbacks=[gradients[size]],
                run_name=f"size-{size}",
            )
            trainer.fit()
            losses[size] = trainer.state.loss
        for size in (1, 3, 16):
            for whole, split in zip(gradients[None].gradients, gradients[size].gradients, strict=True):
                assert torch.allclose(whole, split, rtol=1e-4, atol=1e-6), size
            assert losses[size] == pytest.approx(losses[None], rel=1e-5)

    def test_the_last_smaller_microbatch_weighs_less(
        self, make_trainer: Callable[..., Any], make_loader: Callable[..., Any]
    ) -> None:
        losses = Losses()
        trainer = make_trainer(train_dataloader=make_loader(1, batch_size=4), microbatch_size=3, callbacks=[losses])
        trainer.fit()
        assert trainer.state.loss == pytest.approx((3 * losses.losses[0] + losses.losses[1]) / 4)

    def test_clipping_bounds_the_step_that_is_taken(
        self, make_trainer: Callable[..., Any], make_model: Callable[[], nn.Module]
    ) -> None:
        before = torch.cat([parameter.detach().flatten() for parameter in make_model().parameters()])
        moved = {}
        for norm in (None, 1e-3):
            model = make_model()
            trainer = make_trainer(
                model=model,
                optimizers=torch.optim.SGD(model.parameters(), lr=1.0),
                max_duration="1ba",
                grad_clip_norm=norm,
                run_name="whole" if norm is None else "clipped",
            )
            trainer.fit()
            moved[norm] = (parameters_of(trainer) - before).norm().item()
        assert moved[None] > 0.01
        assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3)

    @pytest.mark.parametrize("precision", ["amp_bf16", "amp_fp16"])
    def test_mixed_precision_trains_on_a_cpu(
        self, precision: str, make_trainer: Callable[..., Any], make_loader: Callable[..., Any]
    ) -> None:
        seen: list[torch.dtype] = []

        class Looks(Callback):
            def after_forward(self, trainer: Any, outputs: torch.Tensor) -> None:
                seen.append(outputs.dtype)

        losses = Losses()
        make_trainer(
            train_dataloader=make_loader(10, batch_size=16),
            max_duration="20ep",
            precision=precision,
            callbacks=[Looks(), losses],
        ).fit()
        assert set(seen) == {torch.bfloat16 if precision == "amp_bf16" else torch.float16}
        assert sum(losses.losses[-10:]) < sum(losses.losses[:10])

    def test_fp16_skips_a_step_whose_gradient_overflows_and_goes_on(
        self, make_trainer: Callable[..., Any], make_model: Callable[[], nn.Module], written: Callable[..., Any]
    ) -> None:
        model = make_model()

        def loss_fn(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
            factor = 1e6 if trainer.session.step == 2 else 1.0
            return outputs.float().square().mean() * factor

        trainer = make_trainer(
            model=model,
            optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
            max_duration="4ba",
            precision="amp_fp16",
            loss_fn=loss_fn,
        )
        trainer.fit()
        assert torch.isfinite(parameters_of(trainer)).all()
        assert written().steps() == [1, 2, 3, 4]

    def test_several_optimizers_are_all_stepped(
        self, make_trainer: Callable[..., Any], make_model: Callable[[], nn.Module]
    ) -> None:
        model: Any = make_model()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[3].parameters())]
        make_trainer(model=model, optimizers=optimizers, max_duration="1ba").fit()
        assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
        assert all(parameter.grad is None for parameter in model.parameters())

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its own parts
    @pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
    def test_a_compiled_model_trains_as_the_same_model_does(
        self, make_trainer: Callable[..., Any], make_model: Callable[[], nn.Module]
    ) -> None:
        results = []
        for compiled in (False, True):
            trainer = make_trainer(
                model=without_dropout(make_model()), compile=compiled, run_name=f"compiled-{compiled}"
            )
            trainer.fit()
            results.append(parameters_of(trainer))
        assert torch.allclose(results[0], results[1], atol=1e-5)


class TestSchedulers:
    @pytest.mark.parametrize(
        ("step_schedulers", "expected"),
        [("batch", [0.1 * 0.5**step for step in range(4)]), ("epoch", [0.1, 0.1, 0.05, 0.05])],
    )
    def test_they_are_stepped_each_batch_or_each_epoch(
        self,
        step_schedulers: str,
        expected: list[float],
        make_trainer: Callable[..., Any],
        make_model: Callable[[], nn.Module],
        make_loader: Callable[..., Any],
    ) -> None:
        model, rates = make_model(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        class Looks(Callback):
            def after_loss(self, trainer: Any, loss: torch.Tensor) -> None:
                rates.append(trainer.state.optimizers[0].param_groups[0]["lr"])

        make_trainer(
            model=model,
            train_dataloader=make_loader(2),
            max_duration="2ep",
            optimizers=optimizer,
            schedulers=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
            step_schedulers=step_schedulers,
            callbacks=[Looks()],
        ).fit()
        assert rates == pytest.approx(expected)

    def test_an_epoch_that_ends_with_the_limit_steps_them_too(
        self, make_trainer: Callable[..., Any], make_model: Callable[[], nn.Module], make_loader: Callable[..., Any]
    ) -> None:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        make_trainer(
            model=model,
            train_dataloader=make_loader(2),
            max_duration="4ba",
            optimizers=[optimizer],
            schedulers=[torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)],
            step_schedulers="epoch",
        ).fit()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)


class TestEvaluation:
    def test_it_happens_when_asked_and_once_at_the_end(
        self, make_trainer: Callable[..., Any], make_loader: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        for interval, steps in (("1ep", [4, 8, 10]), ("3ba", [3, 6, 9, 10]), ("0.5dur", [5, 10]), ("2ep", [8, 10])):
            name = f"every-{interval}"
            make_trainer(
                train_dataloader=make_loader(4),
                max_duration="10ba",
                eval_dataloader=make_loader(1),
                eval_interval=interval,
                run_name=name,
            ).fit()
            assert list(written(name).by_step("loss/eval/total")) == steps, interval

    def test_metrics_are_weighted_by_samples_and_logged_by_name(
        self, make_trainer: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        uneven = [(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long)), (torch.ones(1, 4), torch.ones(1).long())]
        trainer = make_trainer(
            max_duration="1ba",
            eval_dataloader=uneven,
            metrics={"label": lambda outputs, batch: batch[1].float().mean()},
        )
        trainer.fit()
        assert trainer.state.eval_metrics["label"] == 0.25
        assert written().by_step("metrics/eval/label") == {1: 0.25}

    def test_its_time_is_no_part_of_the_step(
        self, make_trainer: Callable[..., Any], make_loader: Callable[..., Any], written: Callable[..., Any]
    ) -> None:
        import time

        make_trainer(
            max_duration="4ba",
            eval_dataloader=make_loader(1),
            eval_interval="2ba",
            metrics={"slow": lambda *_: time.sleep(0.05) or 0.0},
        ).fit()
        lines = written().lines("steps")
        assert [line.get("eval_us", 0) > 50_000 for line in lines] == [False, True, False, True]
        assert all(line["step_us"] < 50_000 for line in lines[1:])

    def test_it_can_be_asked_for_after_the_run(
        self, make_trainer: Callable[..., Any], make_loader: Callable[..., Any]
    ) -> None:
        trainer = make_trainer(eval_dataloader=make_loader(1))
        trainer.fit()
        at_end = dict(trainer.state.eval_metrics)
        assert trainer.evaluate() == at_end

    def test_without_an_eval_dataloader_it_says_so(self, make_trainer: Callable[..., Any]) -> None:
        with pytest.raises(ConfigError, match="evaluate without eval_dataloader"):
            make_trainer().evaluate()


class TestUse:
    def test_fit_twice_is_an_error(self, make_trainer: Callable[..., Any]) -> None:
        trainer = make_trainer()
        trainer.fit()
        with pytest.raises(ConfigError, match="was opened before"):
            trainer.fit()

    def test_modules_frozen_by_a_callback_stay_frozen(
        self, make_trainer: Callable[..., Any], make_loader: Callable[..., Any]
    ) -> None:
        modes = []

        class Freezes(Callback):
            def fit_start(self, trainer: Any) -> None:
                trainer.state.model[2].eval()

            def batch_end(self, trainer: Any) -> None:
                modes.append((trainer.state.model.training, trainer.state.model[2].training))

        make_trainer(callbacks=[Freezes()], eval_dataloader=make_loader(1), eval_interval="2ba").fit()
        assert set(modes) == {(True, False)}

    @pytest.mark.parametrize("kind", ["tuple", "dict", "tensor"])
    def test_batches_of_each_kind_train(
        self, kind: str, make_trainer: Callable[..., Any], make_model: Callable[[], nn.Module]
    ) -> None:
        class Named(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = make_model()

            def forward(self, x: torch.Tensor) -> Any:
                return self.inner(x)

        x, y = torch.randn(6, 4), torch.randint(3, (6,))
        batch = {"tuple": (x, y), "dict": {"x": x, "y": y}, "tensor": x}[kind]
        trainer = make_trainer(
            model=Named(), train_dataloader=[batch] * 3, loss_fn=lambda out, batch: out.square().mean()
        )
        trainer.fit()
        assert (trainer.state.timestamp.batch, trainer.state.timestamp.sample) == (3, 18)

    def test_a_models_own_loss_is_used(self, make_trainer: Callable[..., Any]) -> None:
        class WithLoss(nn.Linear):
            def loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
                return outputs.mean() * 0 + 42

        trainer = make_trainer(model=WithLoss(4, 1), loss_fn=None, max_duration="2ba")
        trainer.fit()
        assert trainer.state.loss == 42

    def test_no_optimizer_given_is_adamw(self, make_trainer: Callable[..., Any]) -> None:
        assert isinstance(make_trainer().state.optimizers[0], torch.optim.AdamW)
