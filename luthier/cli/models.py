"""luthier models: what the server can train and serve; and new base models, brought in on its own machine."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated

import typer

from luthier.cli.client import DEFAULT_URL, Key, Url, connected
from luthier.cli.console import Json, err, literal, out, print_json, table
from luthier.cli.serve import Data, settings_with

app = typer.Typer(help="Base models and tuned models.", no_args_is_help=True)


@app.command("list")
def list_(url: Url = DEFAULT_URL, key: Key = None, json: Json = False) -> None:
    """List the models that can be named in a request."""
    with connected(url, key) as client:
        models = list(client.models.list())
    if json:
        print_json([model.model_dump() for model in models])
        return
    table(
        ("model", "owner", "since"),
        ((m.id, m.owned_by, f"{datetime.fromtimestamp(m.created):%Y-%m-%d %H:%M}") for m in models),
    )


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The name that requests will use.")],
    path: Annotated[
        str, typer.Argument(help="A folder with safetensors and tokenizer.json, or a hub id (owner/name).")
    ],
    replace: Annotated[
        bool, typer.Option(help="Take the place of a model of that name; tuned models keep the old weights.")
    ] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Bring in a base model. Run it on the server's machine; a running server sees it at once."""
    from luthier.control.catalog.installing import Installer
    from luthier.core.clock import SystemClock
    from luthier.storage import Storage

    settings = settings_with(data)
    folder = settings.server.data
    installer = Installer(
        Storage(settings.storage_url), folder / "scratch", settings.training.python or sys.executable, SystemClock()
    )
    with err.status(literal(f"bringing in {name}")):
        card = installer.add(name, path, replace=replace)
    if json:
        print_json(card.model_dump(mode="json"))
        return
    out.print(f"{card.name}: {card.parameters / 1e6:,.0f} M parameters, context {card.context_length:,} tokens")
