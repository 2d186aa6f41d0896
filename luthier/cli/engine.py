"""luthier engine: install, list; engines that have environments of their own on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli.console import Json, err, out, print_json, table
from luthier.cli.serve import Data, settings_with
from luthier.serving import engines
from luthier.serving.engines import Engine

app = typer.Typer(help="Serving engines in environments of their own, on this machine.", no_args_is_help=True)


@app.command()
def install(
    name: Annotated[str, typer.Argument(help="Which engine: vllm.")],
    version: Annotated[str | None, typer.Option(help="Exactly this version; the newest unless told.")] = None,
    python: Annotated[
        str | None, typer.Option(help="Interpreter to make the environment of; Luthier's own unless told.")
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Install an engine, or another version of it in its place; gigabytes are downloaded."""
    folder = settings_with(data).server.data / "engines"
    engine = engines.install(
        folder, name, version=version, python=python, say=lambda said: err.print(said, soft_wrap=True)
    )
    if json:
        print_json(_shown(engine))
        return
    out.print(f"{engine.name} {engine.version} is installed")
    err.print(f'It serves when it is chosen: [serving] backend = "{engine.name}" in luthier.toml', soft_wrap=True)


@app.command("list")
def list_(data: Data = None, json: Json = False) -> None:
    """List the engines that are installed."""
    found = engines.installed(settings_with(data).server.data / "engines")
    if json:
        print_json([_shown(engine) for engine in found])
        return
    table(("engine", "version", "environment"), [(one.name, one.version, str(one.environment)) for one in found])


def _shown(engine: Engine) -> dict[str, str]:
    return {"name": engine.name, "version": engine.version, "environment": str(engine.environment)}
