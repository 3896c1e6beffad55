"""The commands. Thin: parse, call, print; exit codes that scripts can use.

0: done · 1: it failed, or is refused · 2: wrong usage or configuration · 3: `verify` found
something wrong · 130: interrupted
"""

from typing import Annotated

import typer

from mirror import __version__
from mirror.commands import upkeep
from mirror.commands.settings import ConfigFile, read_settings

app = typer.Typer(
    help="A pull-through caching proxy for container images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # no boxes: a mistake is one line, in a log too
)


@app.command()
def serve(config: ConfigFile = None) -> None:
    """Serve on the configured address. SIGTERM or Ctrl-C lets transfers finish, then ends it."""
    settings = read_settings(config)
    from mirror.commands.serving import serve_until_stopped  # takes a second to load

    if code := serve_until_stopped(settings):
        raise typer.Exit(code)


@app.command()
def check_config(config: ConfigFile = None) -> None:
    """Report all mistakes in the configuration. It is read as `serve` reads it."""
    settings = read_settings(config)
    typer.echo(f"The configuration is valid; upstreams: {', '.join(sorted(settings.upstreams))}")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


for command in (upkeep.ls, upkeep.rm, upkeep.pin, upkeep.unpin, upkeep.gc, upkeep.verify):
    app.command()(command)


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
