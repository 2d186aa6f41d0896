"""luthier serve: everything in one process, engines in processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.console import err
from luthier.core import logs
from luthier.core.settings import Settings

Data = Annotated[Path | None, typer.Option("--data", help="Folder of everything Luthier keeps on this machine.")]


def settings_with(data: Path | None, **server: Any) -> Settings:
    """The settings tree with what was said on the command line."""
    said = {name: value for name, value in {"data": data, **server}.items() if value is not None}
    return Settings.read(**({"server": said} if said else {}))


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; loopback unless told.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 8321 unless told.")] = None,
    data: Data = None,
) -> None:
    """Start the server."""
    import uvicorn

    from luthier.app import build

    settings = settings_with(data, host=host, port=port)
    logs.configure(settings.logs.level, settings.logs.json_lines)
    app = build(settings, announce=_show_first_key)
    err.print(f"Luthier is starting; data lies in {settings.server.data.expanduser().absolute()}")
    err.print(f"It will answer at http://{settings.server.host}:{settings.server.port}/v1")
    uvicorn.run(
        app,
        host=settings.server.host,
        port=settings.server.port,
        log_level="warning",
        timeout_graceful_shutdown=10,
        server_header=False,
    )


def _show_first_key(key: str) -> None:
    err.print("\nThe first API key. It is shown this once; keep it:\n")
    print(f"    {key}\n", flush=True)
