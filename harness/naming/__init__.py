"""Names: of a run, and of the files it writes. Nothing here touches the disk or imports torch."""

from __future__ import annotations

from harness.naming.fields import FIELDS, LOCAL_FIELDS, REMOTE_FIELDS, Field, FieldKind, slug
from harness.naming.run_name import (
    MAX_LENGTH,
    NameGenerator,
    ResolvedName,
    resolve_run_name,
    suggest_run_name,
    validate_run_name,
)
from harness.naming.template import Template

__all__ = [
    "FIELDS",
    "LOCAL_FIELDS",
    "MAX_LENGTH",
    "REMOTE_FIELDS",
    "Field",
    "FieldKind",
    "NameGenerator",
    "ResolvedName",
    "Template",
    "resolve_run_name",
    "slug",
    "suggest_run_name",
    "validate_run_name",
]
