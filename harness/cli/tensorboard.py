"""`harness tensorboard`: TensorBoard over all runs, for this machine only."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import click

from harness.cli.options import root_option
from harness.cli.terminal import say
from harness.errors import ConfigError, RunDirError

HOST = "127.0.0.1"
"""TensorBoard asks nobody for a password, so only this machine may see it."""


@click.command(context_settings={"ignore_unknown_options": True})
@root_option
@click.option("--port", type=click.IntRange(1, 65535), default=6006, show_default=True, help="Port on 127.0.0.1.")
@click.argument("arguments", metavar="[-- TENSORBOARD_OPTION...]", nargs=-1, type=click.UNPROCESSED)
def tensorboard(root: Path, port: int, arguments: tuple[str, ...]) -> None:
    """Serve the runs in TensorBoard, until Ctrl-C.

    Only this machine can see them, at http://127.0.0.1:6006.

    What follows -- goes to tensorboard, such as -- --reload_interval 5
    """
    if not root.is_dir():
        raise RunDirError(f"there is no folder {root}", hint="make a run first: harness profile foo")
    _check_port(port)
    say(f"TensorBoard of {root}: http://{HOST}:{port}/ (Ctrl-C ends it)")
    command = [
        *(sys.executable, "-P", "-m", "tensorboard.main"),
        *(f"--logdir={root}", f"--host={HOST}", f"--port={port}", *arguments),
    ]
    os.execv(sys.executable, command)  # noqa: S606 - an argument list, no shell


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"--port={port} cannot be used: {error.strerror}", hint="give another one, such as --port 6007"
            ) from error
