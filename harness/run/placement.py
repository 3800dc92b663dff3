"""Where a template may put a file: in the run's own directory, on no file that is somebody else's.

Looked at when the options are checked. A template that fails only when its file is written costs what would have
been in it.
"""

from __future__ import annotations

from harness.errors import TemplateError
from harness.naming.fields import FIELDS
from harness.naming.template import Template
from harness.run.layout import LOG_NAME, is_own_name

_RUN_FOLDER = "{run_name}"
_EXAMPLES: dict[str, int | str] = {name: field.example for name, field in FIELDS.items()}


def check_placement(template: Template, *, option: str, is_log: bool = False) -> Template:
    """See that a template of a file or folder on disk lies in the directory of its run, and return it.

    Args:
        template: The template, from the run root on.
        option: Where it came from, for the error.
        is_log: Whether it may have the name of a log.

    Raises:
        TemplateError: It may lie outside, or has the name of a file of the harness's own or of a log.
    """
    shown = f"{option}={template.text!r}"
    if template.text.split("/")[0] != _RUN_FOLDER:
        raise TemplateError(
            f"{shown} does not lie in the directory of the run", hint=f"begin the template with {_RUN_FOLDER}/"
        )
    name = "".join(template.format(_EXAMPLES).split("/")[1:2])
    if is_own_name(name):
        raise TemplateError(f"{shown} is a file of the harness's own", hint="give another name")
    if not is_log and LOG_NAME.fullmatch(name):
        raise TemplateError(f"{shown} has the name of a log", hint="give another name")
    return template
