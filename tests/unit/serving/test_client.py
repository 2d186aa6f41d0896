"""Many ask one replica at once: who finds its queue of connections full waits, and is not told that it is gone."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from luthier.core.errors import NoCapacity, ReplicaUnavailable
from luthier.serving.client import ReplicaClient
from luthier.serving.protocol import Fault, Finish, GenerateRequest, Turn

ASKED = GenerateRequest(messages=[Turn(role="user", content="Hi")])
DONE = Finish(reason="stop", prompt_tokens=1, completion_tokens=1)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(DONE.model_dump_json().encode() + b"\n")
    writer.close()


async def ask(path: Path) -> list[object]:
    return [part async for part in ReplicaClient(path).generate(ASKED)]


async def test_more_than_a_replicas_queue_holds_are_all_answered(tmp_path: Path) -> None:
    path = tmp_path / "r.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(2)
        asked = [asyncio.create_task(ask(path)) for _ in range(50)]
        await asyncio.sleep(0.1)  # nobody is taken in yet
        async with await asyncio.start_unix_server(answer, sock=listening, backlog=2):
            assert await asyncio.gather(*asked) == [[DONE]] * 50


async def test_nobody_at_a_socket_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "gone.sock"))
    for name in ("gone.sock", "never.sock"):
        async with asyncio.timeout(1):
            with pytest.raises(ReplicaUnavailable):
                await ask(tmp_path / name)


async def test_a_replica_that_takes_nobody_in_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.serving.client._TAKEN_IN_WITHIN_SECONDS", 0.1)
    path = tmp_path / "r.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(1)
        waiting = [asyncio.create_task(ask(path)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(NoCapacity) as refused:  # it lives: nobody need look after it
            await ask(path)
        assert refused.value.retry_after
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_line_that_is_too_long_is_the_replicas_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ramble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"x" * 1000 + b"\n")
        writer.close()

    monkeypatch.setattr("luthier.serving.client.LONGEST_LINE", 100)
    async with await asyncio.start_unix_server(ramble, tmp_path / "r.sock"):
        with pytest.raises(ReplicaUnavailable, match="more than 100 bytes"):
            await ask(tmp_path / "r.sock")


async def test_a_connection_that_cannot_be_used_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[socket.socket] = []

    async def fail(*, sock: socket.socket, limit: int) -> None:
        used.append(sock)
        raise OSError("no")

    async with await asyncio.start_unix_server(answer, tmp_path / "r.sock"):
        monkeypatch.setattr(asyncio, "open_unix_connection", fail)
        with pytest.raises(ReplicaUnavailable):
            await ask(tmp_path / "r.sock")
    assert [one.fileno() for one in used] == [-1]


async def test_a_fault_that_may_pass_is_told_with_when_to_come_again(tmp_path: Path) -> None:
    async def lost(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        fault = Fault(code="replica_unavailable", message="The engine has ended.", retry_after=3)
        writer.write(fault.model_dump_json().encode() + b"\n")
        writer.close()

    async with await asyncio.start_unix_server(lost, tmp_path / "r.sock"):
        with pytest.raises(ReplicaUnavailable, match="engine has ended") as told:
            await ask(tmp_path / "r.sock")
    assert told.value.retry_after == 3
