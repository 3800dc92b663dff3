"""What can go wrong, as one tree.

    HarnessError
    ├── ConfigError (ValueError)          an option has a value that cannot work
    │   ├── RunNameError                  a run name that breaks the rules
    │   ├── TemplateError                 a file or folder template that breaks the rules
    │   ├── RecipeError                   a capture recipe with a wrong key, value or schedule
    │   └── WorkloadError                 a workload that does not import, build or fit its options
    ├── RunDirError (OSError)             the run directory cannot be made, written or read
    │   ├── RunDirExistsError             a run of this name is there already
    │   └── RunLockedError                a live process holds this run
    ├── DataError (ValueError)            a dataloader gives nothing, or something the loop cannot use
    ├── LossError (ValueError)            a loss that is not a scalar, or is not finite where it must be
    ├── CheckpointError (RuntimeError)    a checkpoint cannot be written, read or matched
    ├── LoggerError (RuntimeError)        a logger that the run cannot do without failed
    ├── CaptureError (RuntimeError)       a trace could not be recorded or written
    ├── TraceFormatError (ValueError)     a trace file that cannot be read
    ├── BenchError (RuntimeError)         a measurement's own process failed
    └── MissingExtraError (ImportError)   an optional package is needed; the message has its pip command

A message says which option or file, the value it got, what was expected, and what to do next.
"""

from __future__ import annotations


class HarnessError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: What is wrong: option or file, value got, value expected.
        hint: What to do next. Shown by the command line on a line of its own.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class ConfigError(HarnessError, ValueError):
    """An option has a value that cannot work."""


class RunNameError(ConfigError):
    """A run name breaks the naming rules."""


class TemplateError(ConfigError):
    """A file or folder template breaks the template rules."""


class RecipeError(ConfigError):
    """A capture recipe has a wrong key, value or schedule, or cannot be found."""


class WorkloadError(ConfigError):
    """A workload cannot be imported or built, or does not take the options it was given."""


class RunDirError(HarnessError, OSError):
    """The run directory cannot be made, written or read."""


class RunDirExistsError(RunDirError):
    """A run of this name exists and nobody said what to do with it."""


class RunLockedError(RunDirError):
    """Another live process holds this run."""


class DataError(HarnessError, ValueError):
    """A dataloader yields nothing, or something the loop cannot use."""


class LossError(HarnessError, ValueError):
    """A loss is not a scalar tensor, or not finite where the policy says it must be."""


class CheckpointError(HarnessError, RuntimeError):
    """A checkpoint cannot be written, read or matched to this run."""


class LoggerError(HarnessError, RuntimeError):
    """A logger that the run cannot do without failed or hangs."""


class CaptureError(HarnessError, RuntimeError):
    """A capture window could not be recorded or its trace not written."""


class TraceFormatError(HarnessError, ValueError):
    """A file is not a trace this package can read."""


class BenchError(HarnessError, RuntimeError):
    """A process that measures what the harness costs ended without a result."""


class MissingExtraError(HarnessError, ImportError):
    """An optional package is needed and not installed."""
