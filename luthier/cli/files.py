"""luthier files: upload, check again, list, delete."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from luthier.cli.client import DEFAULT_URL, Key, Refused, Url, connected
from luthier.cli.console import Json, err, literal, out, print_json, table, visible

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import FileObject

PART_BYTES = 16 * 1024 * 1024
"""A larger file is sent in parts of this size: one that fails is sent again alone, and no single request is too large."""

TRIES_AGAIN = 8
"""Of each part, over about half a minute: long enough for a server that is started again."""

app = typer.Typer(help="Training files on the server.", no_args_is_help=True)


@app.command()
def upload(
    path: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A .jsonl file, one example a line, or a .zip.")
    ],
    category: Annotated[
        str | None,
        typer.Option("--category", help="The format that the file is meant to be of: a file of another is refused."),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json: Json = False,
) -> None:
    """Upload a training file, and say what reading it found."""
    with connected(url, key) as client:
        file = _read(client, send(client, path, category=category))
    _tell(file, json=json)


@app.command()
def check(file_id: str, url: Url = DEFAULT_URL, key: Key = None, json: Json = False) -> None:
    """Check a file once more that was found wrong: an image could not be fetched then, or a limit was too low."""
    with connected(url, key) as client:
        client.post(f"{url.rstrip('/')}/api/platform/files/{file_id}/check", cast_to=object)
        file = _read(client, client.files.retrieve(file_id))
    _tell(file, json=json)


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


def _read(client: OpenAI, file: FileObject) -> FileObject:
    """The file once it has been read."""
    with err.status("reading it"):
        while file.status == "uploaded":
            time.sleep(0.2)
            file = client.files.retrieve(file.id)
    return file


def _tell(file: FileObject, *, json: bool) -> None:
    """What reading a file found. Raises Refused for one that cannot be trained on."""
    if json:
        print_json(file.model_dump())
    elif file.status == "processed":
        out.print(f"{file.id}  {file.filename}, {file.bytes:,} bytes: fit for training")
    if file.status == "error":
        raise Refused(
            f"{file.filename} cannot be trained on: {file.status_details}",
            hint=f"It is kept as {file.id}; correct it and upload it again.",
        )


def send(client: OpenAI, path: Path, *, category: str | None = None) -> FileObject:
    """Upload a file of any size with a bar, in parts where it is large; it has not been read yet when this returns."""
    more = {"category": category} if category else {}
    if path.stat().st_size > PART_BYTES:
        return _send_in_parts(client, path, more)
    with err.status(literal(f"uploading {path.name}")), path.open("rb") as content:
        return client.files.create(file=(path.name, content), purpose="fine-tune", extra_body=more)


def _send_in_parts(client: OpenAI, path: Path, more: dict[str, str]) -> FileObject:
    import openai

    size = path.stat().st_size
    steady = client.with_options(max_retries=TRIES_AGAIN)
    upload = steady.uploads.create(
        bytes=size, filename=path.name, mime_type="application/jsonl", purpose="fine-tune", extra_body=more
    )
    try:
        part_ids, md5 = [], hashlib.md5(usedforsecurity=False)
        with _bar() as bar, path.open("rb") as content:
            task = bar.add_task(visible(f"uploading {path.name}"), total=size)
            for piece in _pieces(content):
                part_ids.append(steady.uploads.parts.create(upload.id, data=piece).id)
                md5.update(piece)
                bar.update(task, advance=len(piece))
        with err.status("putting it together"):
            done = steady.uploads.complete(upload.id, part_ids=part_ids, md5=md5.hexdigest())
    except BaseException:
        with suppress(openai.OpenAIError):  # else it expires by itself
            client.with_options(max_retries=0).uploads.cancel(upload.id)
        raise
    if done.file is None:
        raise Refused(f"{path.name} was uploaded, and deleted by somebody else at once.")
    return done.file


def _pieces(content: BinaryIO) -> Iterator[bytes]:
    while piece := content.read(PART_BYTES):
        yield piece


def _bar() -> Progress:
    title = TextColumn("{task.description}", markup=False)
    columns = (title, BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=err, disable=not err.is_terminal)
