"""A run on disk: its directory, its lock, its manifest, and files that survive kills and full disks."""

from __future__ import annotations

from harness.run.directory import RunDirectory, list_runs
from harness.run.manifest import Manifest, RunFacts, RunListing, read_manifest
from harness.run.manifest_file import ManifestFile

__all__ = ["Manifest", "ManifestFile", "RunDirectory", "RunFacts", "RunListing", "list_runs", "read_manifest"]
