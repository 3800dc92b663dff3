"""MLflow: a run of the run's name on a tracking server, found again by a tag when the run is resumed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from harness.errors import ConfigError
from harness.loggers.base import BaseLogger, RunInfo
from harness.loggers.metric_names import SYSTEM_PREFIX, MetricNames
from harness.loggers.service import default_environment, name_of_rank, require, run_identity
from harness.run.append_file import FileHealth
from harness.units import NS_PER_MS

IDENTITY_TAG = "harness.run_id"
_DEFAULT_EXPERIMENT = "Default"
_METRICS_PER_CALL, _PARAMS_PER_CALL = 1000, 100
_MAX_NAME_LENGTH = 250
_MAX_PARAM_LENGTH = 6000
_MAX_PENDING = 100_000
"""Values that wait while the server does not take them."""
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true"}
"""Read when mlflow is imported; else it reports each call to its makers."""
_REFUSED = re.compile(r"[^\w\-. :/]")


class MLflowLogger(BaseLogger):
    """Sends metrics, system samples and parameters to MLflow, on rank 0. Needs the extra `mlflow`.

    The MLflow run has the run's name, and a tag by which a resumed run finds it. MLflow keeps what it has of a metric:
    steps that are done again are not sent twice, and a parameter that has changed stays as it was.

    In names what MLflow refuses becomes `_`, and they are cut at 250 characters; system samples are under `system/`.
    Values are floats; parameters are texts, cut at 6,000 characters.

    Example:
        Trainer(..., run_name="foo", loggers=[MLflowLogger("http://127.0.0.1:5000", experiment_name="digits")])

    Args:
        tracking_uri: The server, or a store such as `sqlite:///mlflow.db` (which needs all of `mlflow`); None takes
            `MLFLOW_TRACKING_URI`.
        experiment_name: Made if it is not there; None takes `MLFLOW_EXPERIMENT_NAME`, else MLflow's own default.
        tags: Tags of the run.
        rank_zero_only: Whether only rank 0 logs. Else each rank has an MLflow run: `foo`, `foo-rank1`.

    Raises:
        ConfigError: There is no tracking URI.
        MissingExtraError: The package mlflow is not installed.
    """

    name = "mlflow"

    def __init__(
        self,
        tracking_uri: str | None = None,
        *,
        experiment_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        rank_zero_only: bool = True,
    ) -> None:
        require("mlflow", logger=self.name, extra="mlflow")
        self._tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not self._tracking_uri:
            raise ConfigError(
                "the logger 'mlflow' does not know where to",
                hint="set MLFLOW_TRACKING_URI, for example to http://127.0.0.1:5000, or give tracking_uri=",
            )
        self._experiment_name = experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _DEFAULT_EXPERIMENT
        self._tags = dict(tags or {})
        self._rank_zero_only = rank_zero_only
        self._names = MetricNames("MLflow", _mlflow_name)
        self._client: Any = None
        self._run_id = ""
        self._resumed = False
        self._pending: list[tuple[str, float, int, int]] = []
        self._last_steps: dict[str, int] = {}
        self._dropped_values = 0

    def open(self, run: RunInfo) -> None:
        """Find or make the experiment and the MLflow run.

        Raises:
            ConfigError: The server cannot be reached, or refuses.
        """
        if run.rank != 0 and self._rank_zero_only:
            return
        with default_environment(_QUIET):
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException

        identity = run_identity(run)
        try:
            client = MlflowClient(tracking_uri=self._tracking_uri)
            experiment = client.get_experiment_by_name(self._experiment_name)
            experiment_id = experiment.experiment_id if experiment else client.create_experiment(self._experiment_name)
            found = client.search_runs([experiment_id], filter_string=f"tags.`{IDENTITY_TAG}` = '{identity}'")
            self._resumed = bool(found)
            if found:
                self._run_id = found[0].info.run_id
                client.update_run(self._run_id, status="RUNNING")
            else:
                tags = {**self._tags, IDENTITY_TAG: identity}
                self._run_id = client.create_run(experiment_id, run_name=name_of_rank(run), tags=tags).info.run_id
        except (MlflowException, OSError) as error:
            raise ConfigError(
                f"the logger 'mlflow' cannot start with {self._tracking_uri}: {error}",
                hint="is the server there, and the address that of MLFLOW_TRACKING_URI?",
            ) from error
        self._client = client

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        """Keep the values until `flush`.

        Raises:
            ConfigError: Two metrics have the same name in MLflow.
        """
        self._add(step, self._names.row(metrics), time_ns)

    def log_system(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        """Keep the values of the sample until `flush`."""
        self._add(step, self._names.row(metrics, prefix=SYSTEM_PREFIX), time_ns)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Send the parameters that MLflow does not have yet."""
        if self._client is None:
            return
        from mlflow.entities import Param

        known = self._client.get_run(self._run_id).data.params
        new = [
            Param(_mlflow_name(name), str(value)[:_MAX_PARAM_LENGTH])
            for name, value in params.items()
            if _mlflow_name(name) not in known
        ]
        for start in range(0, len(new), _PARAMS_PER_CALL):
            self._client.log_batch(self._run_id, params=new[start : start + _PARAMS_PER_CALL])

    def flush(self) -> None:
        """Send what was kept; what the server does not take waits for the next time."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        while self._pending:
            rows = [row for row in self._pending[:_METRICS_PER_CALL] if not self._is_there(row[0], row[3])]
            if rows:
                self._client.log_batch(self._run_id, metrics=[Metric(*row) for row in rows])
            del self._pending[:_METRICS_PER_CALL]

    def close(self) -> None:
        """Send the rest and mark the MLflow run as finished."""
        if self._client is not None:
            self.flush()
            self._client.set_terminated(self._run_id)

    def file_health(self) -> list[FileHealth]:
        """How many values were given up while the server did not take them."""
        return [FileHealth(bytes_written=0, errors=0, dropped_lines=self._dropped_values, last_error=None)]

    def _add(self, step: int, row: Mapping[str, float], time_ns: int) -> None:
        if self._client is None:
            return
        time_ms = time_ns // NS_PER_MS
        self._pending += [(name, float(value), time_ms, step) for name, value in row.items()]
        excess = len(self._pending) - _MAX_PENDING
        if excess > 0:
            del self._pending[:excess]
            self._dropped_values += excess

    def _is_there(self, name: str, step: int) -> bool:
        """Whether an earlier attempt has sent this step of a metric."""
        if not self._resumed:
            return False
        if name not in self._last_steps:
            history = self._client.get_metric_history(self._run_id, name)
            self._last_steps[name] = max((metric.step for metric in history), default=-1)
        return step <= self._last_steps[name]


def _mlflow_name(name: str) -> str:
    """No character that MLflow refuses, and no part that a path would swallow."""
    parts = _REFUSED.sub("_", name)[:_MAX_NAME_LENGTH].split("/")
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)
