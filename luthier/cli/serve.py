"""luthier serve: everything in one process, engines in processes of their own."""

from __future__ import annotations

import gc
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.console import err
from luthier.core import logs
from luthier.core.errors import Unavailable
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

    from luthier.app import build, only_server_of

    settings = settings_with(data, host=host, port=port)
    logs.configure(settings.logs.level, settings.logs.json_lines)
    section = settings.server
    with only_server_of(section.data):
        pass  # said before anything is begun; the app holds it from here on
    config = uvicorn.Config(
        build(settings, announce=_show_first_key),
        host=section.host,
        port=section.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    listening = _bound(section.host, section.port)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it
        # The app ends a stream when it can send nothing more; the system, which has taken in much before that, the connection.
        after_ms = round(1000 * settings.serving.stalled_after_seconds)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, after_ms)
    is_everywhere = section.host in ("0.0.0.0", "::")  # noqa: S104  (compared, not bound)
    here = "127.0.0.1" if is_everywhere else section.host
    err.print(f"Luthier is starting; data lies in {section.data}", soft_wrap=True)
    err.print(f"It will answer at http://{here}:{listening.getsockname()[1]}/v1")
    gc.freeze()  # what stays for good is not gone through again: a large request had that done several times a second
    uvicorn.Server(config).run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    """A socket on that address, before anything is begun. Raises Unavailable when somebody else has it."""
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # Connections inherit it. asyncio sets it only where a socket names its protocol, and without it a frame of a stream
        # waits for the client's word on the one before, up to 40 ms.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as refused:
        raise Unavailable(
            f"Nothing can listen on {host}:{port}: {refused.strerror}.", hint="Pass another --port; 0 takes a free one."
        ) from refused


def _show_first_key(key: str) -> None:
    err.print("\nThe first API key. It is shown this once; keep it:\n")
    print(f"    {key}\n", flush=True)
