"""`truequant train`: quantization-aware training from a TOML file, to the verified Int8 model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from truequant.cli.options import AsJson
from truequant.cli.session import session

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to train, on what, how (see truequant init).")]


def train(
    context: typer.Context,
    recipe: RecipeFile,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest intact checkpoint in the recipe's folder.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Train so many steps in all, whatever the recipe says.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train with quantization from a TOML file; convert, export and verify what came out.

    Ctrl-C finishes the step, saves a checkpoint, and says how to resume.
    """
    with session(context, as_json) as run:
        from truequant.cli.recipe import read_recipe
        from truequant.cli.training import Training

        Training(read_recipe(recipe), recipe, steps, run).go(resume)
