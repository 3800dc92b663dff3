"""Loggers for Weights & Biases and Comet, offline, around their real clients: what the clients cost, no more.

For the benchmarks only, until the harness has loggers of its own for the two (they then replace these). Named
`client_loggers:WandbOffline` and `client_loggers:CometOffline`; nothing leaves the machine. What the clients do beside
taking metrics (system metrics, source code, git, console output) is switched off, as the harness does it itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from harness.loggers.base import BaseLogger, RunInfo


class WandbOffline(BaseLogger):
    """Writes `wandb/offline-run-*` into the run's folder. Its process ends with `close`, so that its time counts."""

    name = "wandb"

    def open(self, run: RunInfo) -> None:
        """Start the client and its process."""
        import wandb

        self._wandb = wandb
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
        )
        self._run: Any = wandb.init(
            mode="offline", project="bench", name=run.run_name, dir=str(run.directory), settings=settings
        )

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:  # noqa: ARG002
        """One row of the history."""
        self._run.log(dict(metrics), step=step)

    def log_params(self, params: Mapping[str, object]) -> None:
        """The run's configuration."""
        self._run.config.update(dict(params))

    def close(self) -> None:
        """End the run, and wait for the process."""
        self._run.finish()
        self._wandb.teardown()


class CometOffline(BaseLogger):
    """Writes a zip archive of messages into the run's folder."""

    name = "comet"

    def open(self, run: RunInfo) -> None:
        """Start the client and its threads."""
        # Else it looks for torch, which is imported already, to patch it.
        os.environ["COMET_DISABLE_AUTO_LOGGING"] = "1"
        import comet_ml

        self._experiment: Any = comet_ml.OfflineExperiment(
            project_name="bench",
            offline_directory=str(run.directory),
            display_summary_level=0,
            auto_metric_logging=False,
            auto_output_logging=False,
            auto_param_logging=False,
            log_code=False,
            log_env_details=False,
            log_git_metadata=False,
            log_git_patch=False,
            log_graph=False,
            parse_args=False,
        )
        self._experiment.set_name(run.run_name)

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:  # noqa: ARG002
        """A message for each metric."""
        self._experiment.log_metrics(dict(metrics), step=step)

    def log_params(self, params: Mapping[str, object]) -> None:
        """A message for each parameter."""
        self._experiment.log_parameters(dict(params))

    def close(self) -> None:
        """Write what is queued, and archive it."""
        self._experiment.end()
