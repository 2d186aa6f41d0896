"""What a person types.

Verbs on files, jobs, models, deployments, chat and bench speak to a server; serve, demo, train, data, keys, engine and config
work on this machine.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from luthier import __version__
from luthier.cli import bench, chat, config, data, demo, deployments, engine, files, jobs, keys, models, serve, train
from luthier.cli.console import complain
from luthier.core.errors import LuthierError

app = typer.Typer(
    name="luthier",
    help="Fine-tune language models on your own machines, and call them through the API your code already uses.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve.serve)
app.command()(demo.demo)
app.command()(train.train)
app.add_typer(data.app, name="data")
app.add_typer(files.app, name="files")
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(deployments.app, name="deployments")
app.command()(chat.chat)
app.command()(bench.bench)
app.add_typer(keys.app, name="keys")
app.add_typer(engine.app, name="engine")
app.command()(config.config)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def luthier(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error is one or two lines on standard error, never a traceback."""
    os.umask(0o077)  # data, weights and keys are nobody else's on this machine
    try:
        app()
    except LuthierError as error:
        complain(error.message, error.hint)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
