"""The config of a command line: a preset or a TOML file, and what changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from truequant.errors import ArgumentError
from truequant.schemes import QConfig

Preset = Annotated[str, typer.Option(help="w8a8, w7a8, w4a8, w4a4, w8a8-pow2 …: bits of weights and activations.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="TOML file of the config, with rules; instead of a preset.")
]
DEFAULT_PRESET = "w8a8"


def config_of(preset: str, file: Path | None) -> QConfig:
    """The config of the options above."""
    if file is None:
        return QConfig.preset(preset)
    if preset != DEFAULT_PRESET:
        raise ArgumentError("--preset and --config say different things", fix=f'write preset = "{preset}" into {file}')
    return QConfig.from_file(file)
