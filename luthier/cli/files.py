"""luthier files: upload, list, delete."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.client import DEFAULT_URL, Key, Refused, Url, connected
from luthier.cli.console import Json, err, out, print_json, table

app = typer.Typer(help="Training files on the server.", no_args_is_help=True)


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .jsonl file, one example a line.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    json: Json = False,
) -> None:
    """Upload a training file, and say what reading it found."""
    with connected(url, key) as client:
        with err.status(f"uploading {path.name}"), path.open("rb") as content:
            file = client.files.create(file=(path.name, content), purpose="fine-tune")
        with err.status("reading it"):
            while file.status == "uploaded":
                time.sleep(0.2)
                file = client.files.retrieve(file.id)
    if json:
        print_json(file.model_dump())
    elif file.status == "processed":
        out.print(f"{file.id}  {file.filename}, {file.bytes:,} bytes: fit for training")
    if file.status == "error":
        raise Refused(
            f"{path.name} cannot be trained on: {file.status_details}",
            hint=f"It is kept as {file.id}; correct it and upload it again.",
        )


@app.command("list")
def list_(url: Url = DEFAULT_URL, key: Key = None, json: Json = False) -> None:
    """List the files, newest first."""
    with connected(url, key) as client:
        files = list(client.files.list())
    if json:
        print_json([file.model_dump() for file in files])
        return
    table(
        ("id", "file", "bytes", "status", ""),
        ((f.id, f.filename, f"{f.bytes:,}", f.status, f.status_details) for f in files),
    )


@app.command()
def delete(file_id: str, url: Url = DEFAULT_URL, key: Key = None, json: Json = False) -> None:
    """Delete a file."""
    with connected(url, key) as client:
        done = client.files.delete(file_id)
    if json:
        print_json(done.model_dump())
        return
    out.print(f"{file_id} is deleted")
