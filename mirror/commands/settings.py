"""What every command reads first."""

from pathlib import Path
from typing import Annotated

import typer

from mirror.config import ConfigurationError, Settings, load

EXIT_FAILED = 1
EXIT_CONFIGURATION = 2

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="MIRROR_CONFIG",
        help="The YAML file. Without it, the built-in defaults apply.",
    ),
]


def read_settings(config: Path | None) -> Settings:
    """Raises typer.Exit, once each mistake was told."""
    try:
        return load(config)
    except ConfigurationError as error:
        for mistake in error.mistakes:
            typer.echo(str(mistake), err=True)
        plural = "s" if len(error.mistakes) != 1 else ""
        typer.echo(f"{len(error.mistakes)} mistake{plural} in the configuration", err=True)
        raise typer.Exit(EXIT_CONFIGURATION) from None
