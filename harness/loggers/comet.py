"""Comet: the run under its own name, continued by each attempt, offline where there is no API key.

Comet's client works on threads of this process. It replaces torch's and others' functions and reports its own errors
to a third party unless told otherwise; here it is told otherwise, and is asked for metrics and parameters only.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import ConfigError
from harness.loggers.base import BaseLogger, RunInfo
from harness.loggers.metric_names import SYSTEM_PREFIX, MetricNames, in_64_bits
from harness.loggers.service import default_environment, name_of_rank, require, run_identity

_log = logging.getLogger(__name__)

OFFLINE_FOLDER = "comet"
"""In the run's directory: the archives of attempts that were offline."""
_MAX_NAME_LENGTH = 100
_QUIET = {"COMET_DISABLE_AUTO_LOGGING": "1", "COMET_ERROR_TRACKING_ENABLE": "0"}
_ONLY_WHAT_IS_LOGGED: dict[str, Any] = {
    "display_summary_level": 0,
    "auto_metric_logging": False,
    "auto_output_logging": False,
    "auto_param_logging": False,
    "auto_log_co2": False,
    "log_code": False,
    "log_env_details": False,
    "log_git_metadata": False,
    "log_git_patch": False,
    "log_graph": False,
    "parse_args": False,
}


class CometMLLogger(BaseLogger):
    """Sends metrics, system samples and parameters to Comet, on rank 0. Needs the extra `comet`.

    The experiment has the run's name. Its key comes from the run too, so that a resumed run goes on in it. Offline each
    attempt leaves an archive in the run's directory under `comet/`, which `comet upload` sends. The client packs it
    when it is closed: an attempt that is killed leaves none that can be read.

    Names stay as they are up to 100 characters, where Comet cuts them; system samples are under `system/`. NaN and
    infinity are texts, as Comet writes them; an integer beyond 64 bits becomes a float.

    Example:
        Trainer(..., run_name="foo", loggers=[CometMLLogger(project_name="digits")])

    Args:
        project_name: Project; None leaves it to `COMET_PROJECT_NAME` and Comet's own default.
        workspace: Workspace; None leaves it to `COMET_WORKSPACE`.
        tags: Tags of the experiment.
        online: Whether to send while training. None takes `COMET_START_ONLINE`, else is online where there is an API
            key and offline where there is none.
        rank_zero_only: Whether only rank 0 logs. Else each rank has an experiment: `foo`, `foo-rank1`.

    Raises:
        MissingExtraError: The package comet_ml is not installed.
    """

    name = "comet"

    def __init__(
        self,
        project_name: str | None = None,
        *,
        workspace: str | None = None,
        tags: Sequence[str] = (),
        online: bool | None = None,
        rank_zero_only: bool = True,
    ) -> None:
        require("comet_ml", logger=self.name, extra="comet")
        self._project_name = project_name
        self._workspace = workspace
        self._tags = list(tags)
        self._online = online
        self._rank_zero_only = rank_zero_only
        self._names = MetricNames("Comet", lambda name: name[:_MAX_NAME_LENGTH])
        self._experiment: Any = None

    @property
    def experiment(self) -> Any:
        """Comet's own object, for what only it can do; None before `open` and on ranks that do not log."""
        return self._experiment

    def open(self, run: RunInfo) -> None:
        """Start the client and the experiment. Online this waits for the server.

        Raises:
            ConfigError: Comet refuses a setting, cannot be reached, or an experiment of the user's own is going on.
        """
        if run.rank != 0 and self._rank_zero_only:
            return
        with default_environment(_QUIET):
            import comet_ml

            running = comet_ml.get_running_experiment()
            if running is not None and not running.ended:  # Comet would end it
                raise ConfigError(
                    "the logger 'comet' cannot start: this process has a Comet experiment already",
                    hint="end it first, or log to it with a logger of your own",
                )
            folder = run.directory / OFFLINE_FOLDER
            folder.mkdir(exist_ok=True)
            config = comet_ml.ExperimentConfig(
                name=name_of_rank(run), tags=self._tags, offline_directory=str(folder), **_ONLY_WHAT_IS_LOGGED
            )
            try:
                self._experiment = comet_ml.start(
                    project_name=self._project_name,
                    workspace=self._workspace,
                    experiment_key=run_identity(run),
                    mode="get_or_create",
                    online=self._choose_online(),
                    experiment_config=config,
                )
            except Exception as error:  # Comet's own have no common base
                raise ConfigError(
                    f"the logger 'comet' cannot start: {type(error).__name__}: {error}",
                    hint="COMET_START_ONLINE=0 keeps everything here, to be sent later with comet upload",
                ) from error

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:  # noqa: ARG002
        """Queue a message for each value; the time is Comet's.

        Raises:
            ConfigError: Two metrics have the same name in Comet.
        """
        if self._experiment is not None:
            self._experiment.log_metrics(self._names.row(metrics), step=step)

    def log_system(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:  # noqa: ARG002
        """Queue a message for each value of the sample."""
        if self._experiment is not None:
            self._experiment.log_metrics(self._names.row(metrics, prefix=SYSTEM_PREFIX), step=step)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Queue a message for each parameter."""
        if self._experiment is not None:
            self._experiment.log_parameters(
                {name: in_64_bits(value) if isinstance(value, int) else value for name, value in params.items()}
            )

    def close(self) -> None:
        """Send or archive what is queued, and end the experiment."""
        if self._experiment is not None:
            self._experiment.end()

    def _choose_online(self) -> bool | None:
        """What is asked for, else what can be had without a question. None leaves it to Comet."""
        from comet_ml.config import get_config  # type: ignore[attr-defined]  # not in its __all__

        if self._online is not None or os.environ.get("COMET_START_ONLINE"):
            return self._online
        if get_config("comet.api_key"):
            return None
        _log.info("Comet: there is no API key, so it is offline; comet upload sends it later, comet login sets a key")
        return False
