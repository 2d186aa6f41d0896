"""A replica process and its client, over the echo backend."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from luthier.core.errors import InternalError, InvalidRequest, ReplicaUnavailable
from luthier.serving.backends.base import AdapterUnreadable
from luthier.serving.client import ReplicaClient
from luthier.serving.protocol import (
    LONGEST_LINE,
    AdapterRef,
    Finish,
    GenerateRequest,
    Sampling,
    TokenChunk,
    Turn,
    answers,
)
from luthier.serving.spec import ReplicaSpec
from luthier.storage import digest
from luthier.testing import toy_tokenizer


async def _listens(socket: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    writer.close()
    return True


@asynccontextmanager
async def running(folder: Path, *, backend: str = "echo") -> AsyncIterator[asyncio.subprocess.Process]:
    """A replica process over the toy tokenizer in `folder`, up when the block begins."""
    toy_tokenizer(folder / "store/models/toy")
    spec = ReplicaSpec(
        replica="rep-1", base_model="toy", weights="models/toy", weights_sha256="", backend=backend, precision="fp32",
        threads=1, adapters=1, listen=str(folder / "sockets/rep"),
    )  # fmt: skip
    (folder / "spec.json").write_text(spec.model_dump_json())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "luthier.serving.program", folder / "spec.json", "--storage", (folder / "store").as_uri()
    )
    try:
        for _ in range(1000):
            if process.returncode is not None or await _listens(folder / "sockets/rep"):
                break
            await asyncio.sleep(0.02)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[ReplicaClient]:
    async with running(tmp_path):
        yield ReplicaClient(tmp_path / "sockets/rep")


def asking(text: str, adapter: AdapterRef | None = None, **sampling: object) -> GenerateRequest:
    return GenerateRequest(
        adapter=adapter,
        messages=[Turn(role="system", content="Be brief."), Turn(role="user", content=text)],
        sampling=Sampling.model_validate(sampling),
    )


async def answer(client: ReplicaClient, request: GenerateRequest) -> tuple[str, Finish]:
    text = ""
    async for part in client.generate(request):
        if isinstance(part, Finish):
            return text, part
        text += part.text
    raise AssertionError("no Finish")


@pytest.mark.parametrize(
    ("sampling", "text", "reason", "tokens"),
    [
        ({}, "Grüße 🙂, one two", "stop", 22),  # its bytes and the token that ends them
        ({"max_tokens": 5}, "Grü", "length", 5),
        ({"stop": ["one", "🙂"]}, "Grüße ", "stop", 12),
    ],
)
async def test_text_reason_and_counts_arrive(
    client: ReplicaClient, sampling: dict[str, object], text: str, reason: str, tokens: int
) -> None:
    said, finish = await answer(client, asking("Grüße 🙂, one two", **sampling))
    assert (said.rstrip("\ufffd"), finish.reason, finish.completion_tokens) == (text, reason, tokens)
    assert finish.prompt_tokens > len("Be brief.Grüße 🙂, one two")


async def test_health_tells_what_is_there(client: ReplicaClient) -> None:
    health = await client.health(timeout=5)
    assert (health.replica, health.base_model, health.adapters, health.active) == ("rep-1", "toy", [], 0)


async def test_an_adapter_comes_on_demand_and_a_broken_one_says_so(client: ReplicaClient, tmp_path: Path) -> None:
    refs = []
    for name in ("one", "two"):
        (tmp_path / f"store/adapters/{name}").mkdir(parents=True)
        (tmp_path / f"store/adapters/{name}/weights").write_text(name)
        refs.append(AdapterRef(id=name, key=f"adapters/{name}", sha256=digest(tmp_path / f"store/adapters/{name}")))
    await asyncio.gather(*(answer(client, asking("hello", ref)) for ref in refs * 3))
    assert len((await client.health(timeout=5)).adapters) == 1
    with pytest.raises(AdapterUnreadable, match="not stored"):
        await answer(client, asking("hello", AdapterRef(id="absent", key="adapters/absent", sha256="")))
    assert (await answer(client, asking("hello")))[0] == "hello"


async def test_closing_a_stream_cancels_the_call(client: ReplicaClient) -> None:
    async with aclosing(client.generate(asking("x" * 500_000))) as stream:
        assert isinstance(await anext(stream), TokenChunk)
        assert (await client.health(timeout=5)).active == 1
    for _ in range(200):
        if (await client.health(timeout=5)).active == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("still active")


async def raw(socket: Path, line: bytes) -> str:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(line)
    await writer.drain()
    fault = answers.validate_json(await reader.readline())
    writer.close()
    return getattr(fault, "code", "")


async def test_a_line_that_is_no_call_is_a_fault(client: ReplicaClient, tmp_path: Path) -> None:
    assert await raw(tmp_path / "sockets/rep", b'{"op": "dance"}\n') == InvalidRequest.code
    assert await raw(tmp_path / "sockets/rep", b"x" * (LONGEST_LINE + 1000) + b"\n") == InvalidRequest.code
    assert (await answer(client, asking("hello")))[0] == "hello"


async def test_sigterm_lets_a_short_answer_end_and_leaves_no_socket(tmp_path: Path) -> None:
    async with running(tmp_path) as process:
        client = ReplicaClient(tmp_path / "sockets/rep")
        async with aclosing(client.generate(asking("y" * 300))) as stream:
            await anext(stream)
            process.send_signal(signal.SIGTERM)
            rest = [part async for part in stream]
        assert isinstance(rest[-1], Finish)
        assert await process.wait() == 0
        assert not (tmp_path / "sockets/rep").exists()
        with pytest.raises(ReplicaUnavailable):
            await client.health(timeout=5)


async def test_a_stale_socket_is_replaced_and_the_folder_is_ours_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as process:
        process.kill()
        await process.wait()
    socket = tmp_path / "sockets/rep"
    assert socket.exists()
    with pytest.raises(ReplicaUnavailable):
        await ReplicaClient(socket).health(timeout=5)
    async with running(tmp_path):
        for _ in range(500):
            try:
                await ReplicaClient(socket).health(timeout=5)
                break
            except ReplicaUnavailable:
                await asyncio.sleep(0.02)
        assert stat.S_IMODE(os.stat(socket.parent).st_mode) == 0o700


async def test_what_cannot_start_says_so_and_ends(tmp_path: Path) -> None:
    async with running(tmp_path, backend="absent") as process:
        assert await process.wait() == 1
    (long := tmp_path / ("f" * 120)).mkdir()
    async with running(long) as process:
        assert await process.wait() == 1


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b'{"type":"chunk","text":"half"}\n', ReplicaUnavailable),
        (b"not json\n", ReplicaUnavailable),
        (b'{"type":"fault","code":"never_heard","message":"what"}\n', InternalError),
    ],
)
async def test_a_replica_that_breaks_off_is_told_by_the_client(
    tmp_path: Path, said: bytes, error: type[Exception]
) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(said)
        writer.close()

    async with await asyncio.start_unix_server(speak, tmp_path / "s"):
        with pytest.raises(error):
            await answer(ReplicaClient(tmp_path / "s"), asking("hello"))
