"""`harness checkpoints`: what a run has saved, whether it is still good, fewer of it, or the weights alone."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.options import json_option, root_option

_ENDINGS = (".safetensors", ".pt")


def _export(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Path | None:
    if value is None:
        return None
    path = Path(value)
    if path.suffix not in _ENDINGS:
        raise click.BadParameter(f"{value!r} must end in {' or '.join(_ENDINGS)}, which says what is written")
    return path


@click.command
@click.argument("run_name", metavar="NAME")
@click.option("--verify", is_flag=True, help="Read all of them and compare checksums; exit code 1 if one is damaged.")
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Remove all but the newest N that verify. Not while the run is going on.",
)
@click.option(
    "--export",
    metavar="FILE",
    callback=_export,
    help="Write the model's weights of the newest one that verifies to FILE, .safetensors or .pt (a state dict).",
)
@click.option("--step", type=click.IntRange(min=0), metavar="STEP", help="With --export: the checkpoint of this step.")
@click.option("--overwrite", is_flag=True, help="With --export: replace FILE if it is there.")
@root_option
@json_option
def checkpoints(
    run_name: str,
    verify: bool,
    keep: int | None,
    export: Path | None,
    step: int | None,
    overwrite: bool,
    root: Path,
    as_json: bool,
) -> None:
    """List, verify, thin out or export the checkpoints of a run.

    Without --verify only sizes are compared. The note says which one a link such as latest points to, and which one a
    resumed run goes on from.

    \b
    harness checkpoints foo --verify
    harness checkpoints foo --keep 3
    harness checkpoints foo --export weights.safetensors --step 500
    """
    _check_together(verify=verify, keep=keep, export=export, step=step, overwrite=overwrite)
    if keep is not None:
        from harness.cli.checkpoint_removal import keep_newest

        keep_newest(root, run_name, keep, as_json=as_json)
    elif export is not None:
        from harness.cli.checkpoint_weights import export_weights

        export_weights(root, run_name, export, step=step, overwrite=overwrite, as_json=as_json)
    else:
        from harness.cli.checkpoint_list import list_checkpoints

        list_checkpoints(root, run_name, verify=verify, as_json=as_json)


def _check_together(*, verify: bool, keep: int | None, export: Path | None, step: int | None, overwrite: bool) -> None:
    actions = {"--verify": verify, "--keep": keep is not None, "--export": export is not None}
    given = [name for name, is_given in actions.items() if is_given]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other: --keep and --export verify what they use")
    for name, is_given in (("--step", step is not None), ("--overwrite", overwrite)):
        if is_given and export is None:
            raise click.UsageError(f"{name} needs --export")
