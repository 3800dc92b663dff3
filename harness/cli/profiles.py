"""`harness profiles`: the recipes that come with the package."""

from __future__ import annotations

import click

from harness.cli.options import json_option
from harness.cli.table import render_pairs
from harness.cli.terminal import say, write_json, write_lines


@click.command
@click.argument("recipe", metavar="[RECIPE]", required=False)
@json_option
def profiles(recipe: str | None, as_json: bool) -> None:
    """List the capture recipes, or print one.

    Printed as TOML, to start your own from.

    \b
    harness profiles
    harness profiles quick > mine.toml
    """
    from harness.capture.recipe import Recipe, known_recipes

    if recipe is None:
        recipes = [Recipe.load(name) for name in known_recipes()]
        if as_json:
            write_json([one.to_dict() for one in recipes])
        else:
            write_lines(render_pairs((one.name, one.description) for one in recipes))
            say("use one: harness profile foo --profile NAME; print one: harness profiles NAME")
    elif as_json:
        write_json(Recipe.load(recipe).to_dict())
    else:
        _print_toml(recipe)


def _print_toml(recipe: str) -> None:
    """A known recipe as it is written, with its comments; any other as it was understood."""
    from harness.capture.recipe import Recipe, known_recipes

    loaded = Recipe.load(recipe)
    path = known_recipes().get(recipe)
    text = path.read_text(encoding="utf-8") if path is not None else loaded.to_toml()
    write_lines(text.splitlines())
