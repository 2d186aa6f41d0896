"""Replicas come when they are asked for, are replaced when they die, and go when nobody asks any more."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from luthier.app import Parts
from luthier.control.deployments.tables import ReplicaRow
from luthier.control.inference.service import CompletionRequest
from luthier.control.scheduling import replicas
from luthier.core.errors import InvalidParameter, ModelNotFound, ReplicaUnavailable
from luthier.core.settings import ServingSection
from luthier.executors.base import Executor, executors
from luthier.serving.protocol import Finish, Sampling, TokenChunk, Turn
from luthier.testing import InlineExecutor, toy_parts
from tests import vllm_stand_in
from tests.unit.control.conftest import ADA, House, on_sqlite


def serving(house: House, executor: Executor, **changes: object) -> Parts:
    """A server that answers by echo."""
    return house.again(executor, serving=ServingSection.model_validate({"backend": "echo"} | changes))


@asynccontextmanager
async def running(parts: Parts) -> AsyncIterator[None]:
    loop = asyncio.create_task(parts.replicas.run())
    try:
        yield
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        await parts.replicas.stop_all()


async def say(parts: Parts, text: str) -> str:
    request = CompletionRequest("toy", [Turn(role="user", content=text)], sampling=Sampling.model_validate({}))
    deltas = [delta async for delta in await parts.services.inference.complete(ADA, request)]
    assert isinstance(deltas[-1].part, Finish)
    return "".join(delta.part.text for delta in deltas if isinstance(delta.part, TokenChunk))


async def rows(parts: Parts) -> list[ReplicaRow]:
    async with parts.db.read() as session:
        return list(await session.scalars(select(ReplicaRow).order_by(ReplicaRow.id)))


async def statuses(parts: Parts, *wanted: str) -> list[ReplicaRow]:
    """Wait until the replicas have these statuses, oldest first."""
    async with asyncio.timeout(90):
        while tuple(row.status for row in await rows(parts)) != wanted:
            await asyncio.sleep(0.02)
    return await rows(parts)


@on_sqlite
async def test_a_replica_is_started_answers_is_replaced_when_killed_and_goes_when_idle(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "_LOOKED_AT_EVERY_SECONDS", 0.1)
    local = executors.load("local")(house.folder / "processes", 2)  # type: ignore[call-arg]
    parts = serving(house, local, idle_after_seconds=600, ready_within_seconds=100)
    assert await rows(parts) == []
    async with running(parts):
        assert await say(parts, "Hello there") == "Hello there"
        [first] = await statuses(parts, "ready")
        assert first.handle is not None
        os.killpg(first.handle["pid"], signal.SIGKILL)
        assert await say(parts, "Still there?") == "Still there?"
        await statuses(parts, "gone", "ready")
        house.clock.advance(590)
        assert await say(parts, "Do not go") == "Do not go"
        house.clock.advance(590)  # idle for less than it may be, because it was used in between
        await asyncio.sleep(0.5)
        await statuses(parts, "gone", "ready")
        house.clock.advance(20)
        _, second = await statuses(parts, "gone", "gone")
        assert second.socket is not None
        assert not os.path.exists(second.socket)


async def test_a_replica_that_cannot_start_is_told_and_not_tried_without_end(house: House) -> None:
    executor = InlineExecutor(lambda process: 1)
    parts = serving(house, executor)
    async with running(parts):
        with pytest.raises(ReplicaUnavailable, match="toy could not be started") as refused:
            await say(parts, "Hello")
    assert refused.value.retry_after == 30
    assert len(executor.started) == 1


async def test_ten_requests_at_once_want_one_replica(house: House) -> None:
    executor = InlineExecutor(lambda process: 0 if process.stopping.wait(60) else 1)
    parts = serving(house, executor, ready_within_seconds=1)
    async with running(parts):
        answers = await asyncio.gather(*(say(parts, "Hello") for _ in range(10)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ReplicaUnavailable] * 10
    assert all("still being loaded" in str(answer) for answer in answers)
    assert len(executor.started) == 1


async def test_a_model_that_is_not_there_wants_no_replica(house: House) -> None:
    request = CompletionRequest("nothing", [Turn(role="user", content="Hi")], sampling=Sampling.model_validate({}))
    with pytest.raises(ModelNotFound):
        await house.parts.services.inference.complete(ADA, request)
    assert await rows(house.parts) == []


@on_sqlite
async def test_a_replica_that_listens_by_tcp_is_found_by_its_port_and_its_key_is_in_no_file_that_others_read(
    house: House,
) -> None:
    local = executors.load("local")(house.folder / "processes", 2)  # type: ignore[call-arg]
    parts = serving(house, local, listen="tcp://127.0.0.1", ready_within_seconds=100)
    async with running(parts):
        assert await say(parts, "Hello there") == "Hello there"
        [row] = await statuses(parts, "ready")
        assert row.socket is not None and row.socket.startswith("tcp://") and not row.socket.endswith(":0")
        key = row.socket.removeprefix("tcp://").partition("@")[0]
        assert len(key) == 64
        holding = [path for path in house.folder.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
        kept = [path for path in holding if not path.name.startswith("luthier.db")]
        assert [path.name for path in kept] == [f"{row.id}.key"]
        assert kept[0].stat().st_mode & 0o077 == 0


def test_a_folder_too_long_for_a_socket_is_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("f" * 100)))
    with pytest.raises(InvalidParameter, match="bytes long"):
        toy_parts(tmp_path / "data", InlineExecutor(lambda process: 0))
    toy_parts(tmp_path / "data", InlineExecutor(lambda process: 0), serving=ServingSection(listen="tcp://127.0.0.1"))


async def test_a_replica_of_vllm_finds_its_engine_and_gets_its_options(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_STAND_IN", str(house.folder))
    local = executors.load("local")(house.folder / "processes", 2)  # type: ignore[call-arg]
    options = {"self_check": False, "max_model_len": 256}
    parts = serving(house, local, backend="vllm", options=options, ready_within_seconds=100)
    vllm_stand_in.install(parts.replicas.pool.engines)
    async with running(parts):
        assert await say(parts, "Hello there") != ""
    started = json.loads((house.folder / "requests.jsonl").read_text().splitlines()[0])
    assert "--max-model-len 256" in " ".join(started["arguments"])


def test_options_that_its_backend_does_not_have_keep_the_server_from_starting(house: House) -> None:
    with pytest.raises(InvalidParameter, match=r"serving\.options\.max_model_len"):
        serving(house, InlineExecutor(lambda process: 1), backend="echo", options={"max_model_len": 9})
