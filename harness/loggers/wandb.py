"""Weights & Biases: the run under its own name, continued by each attempt, offline where nobody is logged in.

W&B's client runs a process of its own, `wandb-core`. It ends with `close`, and by itself when this process is killed.
Console output, system statistics, source code and git are not taken by the client: the harness has them, and each
costs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import ConfigError
from harness.loggers.base import BaseLogger, RunInfo
from harness.loggers.metric_names import SYSTEM_PREFIX, MetricNames, in_64_bits
from harness.loggers.service import default_environment, name_of_rank, require, run_identity
from harness.units import NS_PER_S

if TYPE_CHECKING:
    import wandb

_log = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]
_MODES = ("online", "offline", "disabled")
_ID_DIGITS = 16
_INIT_TIMEOUT_S = 30.0
_FINISH_TIMEOUT_S = 8.0
"""Below the ten seconds that closing a logger may take; W&B's own default waits for ever when the network is gone."""
_RESERVED_PREFIX = "metrics/"
_QUIET = {"WANDB_ERROR_REPORTING": "false"}
"""Else it reports on itself to its makers, offline too, and with no network the process waits for that up to 30 s."""
_SETTINGS: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "init_timeout": _INIT_TIMEOUT_S,
    "finish_timeout": _FINISH_TIMEOUT_S,
}


class WandBLogger(BaseLogger):
    """Sends metrics, system samples and parameters to Weights & Biases. Needs the extra `wandb`.

    The W&B run has the run's name. Its id comes from the run too, so that a resumed run goes on in it: W&B keeps what
    it has of a step, so the steps that are done again are not doubled. The client's files are in the run's directory
    under `wandb/`; what was logged offline is sent with `wandb sync`.

    Names stay as they are, but one that begins with `_` gets `metrics/` in front, as W&B keeps such names to itself;
    system samples are under `system/`. NaN and infinity are W&B's own; an integer beyond 64 bits becomes a float.

    Example:
        Trainer(..., run_name="foo", loggers=[WandBLogger(project="digits")])

    Args:
        project: Project; None leaves it to `WANDB_PROJECT` and W&B's own default.
        entity: User or team; None leaves it to `WANDB_ENTITY`.
        group: Group of runs; None takes the run's name where several ranks log, else none.
        tags: Tags of the run.
        mode: `online`, `offline` or `disabled`. None takes `WANDB_MODE`, else is online where there is a login and
            offline where there is none.
        rank_zero_only: Whether only rank 0 logs. Else each rank has a W&B run, `foo`, `foo-rank1`, in one group.

    Raises:
        ConfigError: `mode` is none of the three.
        MissingExtraError: The package wandb is not installed.
    """

    name = "wandb"

    def __init__(
        self,
        project: str | None = None,
        *,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        mode: Mode | None = None,
        rank_zero_only: bool = True,
    ) -> None:
        if mode is not None and mode not in _MODES:
            raise ConfigError(f"mode={mode!r} of the logger 'wandb', expected one of {', '.join(_MODES)} or None")
        require("wandb", logger=self.name, extra="wandb")
        self._project = project
        self._entity = entity
        self._group = group
        self._tags = list(tags)
        self._mode = mode
        self._rank_zero_only = rank_zero_only
        self._names = MetricNames("W&B", _wandb_name)
        self._run: wandb.Run | None = None
        self._last_step = 0

    @property
    def run(self) -> wandb.Run | None:
        """W&B's own object, for what only it can do; None before `open` and on ranks that do not log.

        It is not `wandb.run`: a W&B run of your own is left alone.
        """
        return self._run

    def open(self, run: RunInfo) -> None:
        """Start the client, its process and the W&B run. Online this waits for the server, up to 30 s.

        Raises:
            ConfigError: W&B refuses a setting, or cannot be reached.
        """
        if run.rank != 0 and self._rank_zero_only:
            return
        group = self._group or (run.run_name if run.world_size > 1 and not self._rank_zero_only else None)
        with default_environment(_QUIET):
            import wandb

            try:
                self._run = wandb.init(
                    mode=self._choose_mode(),
                    project=self._project,
                    entity=self._entity,
                    name=name_of_rank(run),
                    id=run_identity(run)[:_ID_DIGITS],
                    group=group,
                    tags=self._tags or None,
                    resume="allow",
                    reinit="create_new",
                    dir=str(run.directory),
                    settings=wandb.Settings(**_SETTINGS),
                )
            except (wandb.Error, ValueError, OSError) as error:
                raise ConfigError(
                    f"the logger 'wandb' cannot start: {type(error).__name__}: {error}",
                    hint="WANDB_MODE=offline keeps everything here, to be sent later with wandb sync",
                ) from error
        if not self._run.offline and self._run.url:
            _log.info("W&B: %s", self._run.url)

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        """Add the values to the step's row of the history.

        Raises:
            ConfigError: Two metrics have the same name in W&B.
        """
        self._add(step, self._names.row(metrics), time_ns)

    def log_system(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        """Add the sample to the step's row, or to the last one: W&B takes no earlier step."""
        self._add(max(step, self._last_step), self._names.row(metrics, prefix=SYSTEM_PREFIX), time_ns)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Make the parameters the run's config."""
        if self._run is not None:
            plain = {name: in_64_bits(value) if isinstance(value, int) else value for name, value in params.items()}
            # A resumed run may have a longer duration, another machine, other workers.
            self._run.config.update(plain, allow_val_change=True)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """End the W&B run, and the client's process unless somebody else logs with it."""
        if self._run is None:
            return
        import wandb

        self._run.finish()
        if wandb.setup().most_recent_active_run is None:
            wandb.teardown()

    def _add(self, step: int, row: Mapping[str, float], time_ns: int) -> None:
        if self._run is not None and row:
            self._last_step = step
            self._run.log({**row, "_timestamp": time_ns / NS_PER_S}, step=step)

    def _choose_mode(self) -> Mode | None:
        """What is asked for, else what can be had without a question on the terminal. None leaves it to W&B."""
        import wandb

        if self._mode is not None or os.environ.get("WANDB_MODE"):
            return self._mode
        session = wandb.setup()
        own = session.most_recent_active_run
        if own is not None:  # nobody can log in while a run is going on: then as that one does
            return "offline" if own.offline else None
        if session.settings.mode != "online" or wandb.login(prompt=False, verify=False):
            return None
        _log.info("W&B: nobody is logged in, so it is offline; wandb sync sends it later, wandb login logs in")
        return "offline"


def _wandb_name(name: str) -> str:
    return _RESERVED_PREFIX + name if name.startswith("_") else name
