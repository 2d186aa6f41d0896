"""A replica over TCP hears those who know the key of its start; who shows its address shows no key."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from luthier.core.errors import InvalidParameter, ReplicaUnavailable
from luthier.serving.address import KEY_VARIABLE, TcpAddress, UnixAddress, announced, parse
from luthier.serving.client import ReplicaClient
from luthier.serving.protocol import Finish, GenerateRequest, Turn
from luthier.serving.spec import ReplicaSpec
from luthier.testing import toy_tokenizer

KEY = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/tmp/a.sock", UnixAddress(Path("/tmp/a.sock"))),
        ("tcp://127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("tcp://secret@node-7:81", TcpAddress("node-7", 81, "secret")),
        ("tcp://secret@[::1]:81", TcpAddress("::1", 81, "secret")),
    ],
)
def test_an_address_is_the_text_that_it_was_read_from(text: str, address: UnixAddress | TcpAddress) -> None:
    assert parse(text) == address
    assert address.text == text
    assert "secret" not in f"{address} {address!r}"


@pytest.mark.parametrize(
    "text", ["tcp://", "tcp://host", "tcp://:80", "tcp://host:eighty", "tcp://host:99999", "/" + "x" * 100]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse(text)


def test_the_last_port_that_a_log_tells_counts() -> None:
    assert announced("starting\nlistening at 80\nlistening at 81\nready\n") == 81
    assert announced("it says: listening at 80\n") is None


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    """Of a replica process."""
    toy_tokenizer(tmp_path / "store/models/toy")
    spec = ReplicaSpec(
        replica="rep-1", base_model="toy", weights="models/toy", weights_sha256="", backend="echo", precision="fp32",
        threads=1, adapters=1, listen="tcp://127.0.0.1:0",
    )  # fmt: skip
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "luthier.serving.program", tmp_path / "spec.json",
        "--storage", (tmp_path / "store").as_uri(), env={**os.environ, KEY_VARIABLE: KEY}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said = ""
        while (found := announced(said)) is None:
            line = await asyncio.wait_for(process.stdout.readline(), 60)
            assert line, said
            said += line.decode()
        yield found
    finally:
        process.kill()
        await process.communicate()


async def test_who_knows_the_key_is_answered_and_nobody_else_is_told_a_thing(port: int) -> None:
    asked = GenerateRequest(messages=[Turn(role="user", content="Hi")])
    *texts, finish = [part async for part in ReplicaClient(f"tcp://{KEY}@127.0.0.1:{port}").generate(asked)]
    assert isinstance(finish, Finish) and len(texts) == 2
    for wrong in ("f" * len(KEY), "", KEY[:-1], KEY + "0"):
        address = f"tcp://{wrong}@127.0.0.1:{port}" if wrong else f"tcp://127.0.0.1:{port}"
        with pytest.raises(ReplicaUnavailable) as refused:
            await ReplicaClient(address).health(timeout=20)
        assert KEY[:-1] not in str(refused.value)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\n" + b"x" * 1000)
    assert await asyncio.wait_for(_all(reader), 20) == b""
    writer.close()


async def _all(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:  # what we had still sent was not read
        return b""
