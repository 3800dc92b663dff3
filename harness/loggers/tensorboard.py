"""Scalars, system metrics and hyperparameters for TensorBoard, at a tenth of what its own writer costs.

One event holds all values of a step, and a flush is one `write`. `tensorboard --logdir runs` shows the run
under exactly its name, as the events lie in the run's own folder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from harness.loggers.base import BaseLogger, RunInfo
from harness.loggers.event_file import EventFile
from harness.loggers.event_wire import (
    ScalarLayout,
    file_version_event,
    frame,
    hparams_event,
    session_start_event,
    text_event,
)
from harness.naming.fields import START_FIELDS
from harness.naming.template import Template
from harness.run.append_file import FileHealth
from harness.run.placement import check_placement
from harness.units import NS_PER_S

FOLDER_TEMPLATE = "{run_name}"
SYSTEM_PREFIX = "system/"
_MAX_LAYOUTS = 1000


class TensorBoardLogger(BaseLogger):
    """Writes `events.out.tfevents.*` into the run's folder, on rank 0.

    Metrics keep their names, system samples go under `system/`, parameters to the HParams and Text tabs. A
    resumed run starts a new file, which tells readers to forget the steps that are done again. Values are
    float32, as TensorBoard's scalars are.

    Args:
        folder: Template of the folder.

    Raises:
        TemplateError: The template breaks the rules.
    """

    name = "tensorboard"

    def __init__(self, folder: str = FOLDER_TEMPLATE) -> None:
        template = Template.compile(folder, option="tensorboard folder", fields=START_FIELDS)
        self._template = check_placement(template, option="tensorboard folder")
        self._file: EventFile | None = None
        self._records: list[bytes] = []
        self._layouts: dict[tuple[str, ...], ScalarLayout] = {}

    def open(self, run: RunInfo) -> None:
        """Start a new event file; nothing on ranks other than 0.

        Raises:
            RunDirError: The file cannot be made.
        """
        if run.rank != 0:
            return
        folder = run.path(run.format(self._template))
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventFile(folder)
        now_s = time.time()
        # Every file says where it starts, a fresh run's too: readers take the first such event as no restart.
        self._add(file_version_event(now_s))
        self._add(session_start_event(now_s, (run.resumed_step or 0) + 1))
        self.flush()

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        """Add one event with all values."""
        if self._file is not None:
            tags = tuple(metrics)
            layout = self._layouts.get(tags) or self._new_layout(tags)
            self._records.append(frame(layout.event(time_ns / NS_PER_S, step, metrics.values())))

    def log_system(self, step: int, metrics: Mapping[str, float], *, time_ns: int) -> None:
        """Add one event with all values, under `system/`."""
        self.log_metrics(step, {SYSTEM_PREFIX + name: value for name, value in metrics.items()}, time_ns=time_ns)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Add the parameters as a session of the HParams tab, and as a table of the Text tab."""
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in params.items()
        }
        now_s = time.time()
        self._add(hparams_event(now_s, plain))
        rows = [f"|{_cell(name)}|{_cell(value)}|" for name, value in plain.items()]
        self._add(text_event(now_s, "params", "\n".join(["|name|value|", "|---|---|", *rows])))

    def flush(self) -> None:
        """Write what was added in one `write`."""
        if self._file is not None:
            records, self._records = self._records, []
            self._file.write(b"".join(records))

    def close(self) -> None:
        """Write the rest and close the file."""
        if self._file is not None:
            self.flush()
            self._file.close()

    def file_health(self) -> list[FileHealth]:
        """How the event file fared; its lines are records."""
        return [] if self._file is None else [self._file.health]

    def _add(self, event: bytes) -> None:
        if self._file is not None:
            self._records.append(frame(event))

    def _new_layout(self, tags: tuple[str, ...]) -> ScalarLayout:
        if len(self._layouts) >= _MAX_LAYOUTS:
            self._layouts.clear()
        layout = self._layouts[tags] = ScalarLayout(tags)
        return layout


def _cell(value: object) -> str:
    """Text that breaks no Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
