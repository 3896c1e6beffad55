"""The commands. Thin: parse, call, print; exit codes that scripts can use.

0: done · 1: it failed while running · 2: wrong usage or configuration
"""

from pathlib import Path
from typing import Annotated

import typer

from mirror import __version__, serving
from mirror.config import ConfigurationError, Settings, load

EXIT_CONFIGURATION = 2

app = typer.Typer(
    help="A pull-through caching proxy for container images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="MIRROR_CONFIG",
        help="The YAML file. Without it, the built-in defaults apply.",
    ),
]


@app.command()
def serve(config: ConfigFile = None) -> None:
    """Serve on the configured address until SIGTERM or Ctrl-C; then let transfers finish."""
    if code := serving.serve(_settings(config)):
        raise typer.Exit(code)


@app.command()
def check_config(config: ConfigFile = None) -> None:
    """Check the configuration as `serve` would read it, and report every mistake in it."""
    settings = _settings(config)
    typer.echo(f"The configuration is valid; upstreams: {', '.join(sorted(settings.upstreams))}")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        version()
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Before any command."""


def _settings(config: Path | None) -> Settings:
    try:
        return load(config)
    except ConfigurationError as error:
        for mistake in error.mistakes:
            typer.echo(str(mistake), err=True)
        plural = "s" if len(error.mistakes) != 1 else ""
        typer.echo(f"{len(error.mistakes)} mistake{plural} in the configuration", err=True)
        raise typer.Exit(EXIT_CONFIGURATION) from None
